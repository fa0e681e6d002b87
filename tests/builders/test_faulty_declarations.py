"""A fault in any field of any declaration is one typed error that names it, never a traceback from elsewhere."""

import pickle
import typing

import modal
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import gpuserve
from gpuserve import DeclarationError, Gpu, GpuserveError, HubSource, ImageSpec, Items, Scaling, SecretSpec
from gpuserve.specs.base import Spec
from gpuserve.specs.batch import BatchDeclaration
from gpuserve.specs.schedule import JobDeclaration
from gpuserve.specs.server import ServerDeclaration
from gpuserve.specs.training import TrainingDeclaration


def _is_spec(found: object) -> bool:
    # a source of a plain list or iterator is no place where a value can be wrong by its type
    return isinstance(found, type) and issubclass(found, Spec) and found not in {ImageSpec, Items}


# Whatever the façade has: a declaration that is added is tried here without being named.
SPECS: list[type[BaseModel]] = [
    *(ServerDeclaration, BatchDeclaration, JobDeclaration, TrainingDeclaration),
    *(found for found in (getattr(gpuserve, name) for name in gpuserve.__all__) if _is_spec(found)),
]

# Fields that are told by the word that is written for them: Schedule.cron(…), Schedule.period(…).
TOLD_AS = {"text": "cron", "every": "period"}

# What people write by mistake, and what nobody would.
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([0, -1, 1, 2**31, 2**63, 10**400]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=20),
    st.sampled_from(["", "H100", "L4:99", "/a", "a/../b", "\0", "https://x", "\ud800", "a" * 5000, "-1", "1e999"]),
    st.binary(max_size=8),
    st.builds(object),
    st.sampled_from([int, dict, print, SecretSpec(name="a"), Scaling(), ImageSpec.debian("3.11"), HubSource("a/b")]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(max_size=8), st.integers(), st.none()), inner, max_size=3),
    ),
    max_leaves=5,
)


def declared(make: typing.Callable[[], object]) -> object:
    """The declaration, or the faults; anything but a typed error of gpuserve's is the test's failure."""
    try:
        return make()
    except DeclarationError as refused:
        error = refused
    except GpuserveError as refused:
        return (str(refused),)
    assert error.faults
    assert all(isinstance(fault, str) and fault for fault in error.faults)
    assert pickle.loads(pickle.dumps(error)).faults == error.faults
    return error.faults


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
@settings(max_examples=25)
@given(data=st.data())
def test_whatever_stands_in_a_field_it_is_taken_or_refused_by_name(spec, data):
    values = data.draw(st.dictionaries(st.sampled_from([*spec.model_fields, "other"]), VALUES, max_size=4))

    outcome = declared(lambda: spec(**values))

    assert isinstance(outcome, spec | tuple)
    if "other" in values:
        assert isinstance(outcome, tuple)
        assert any("other is not a field" in fault for fault in outcome)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.__name__)
def test_every_wrong_field_is_told_in_the_same_error(spec):
    wrong = {name: object() for name, field in spec.model_fields.items() if field.annotation is not typing.Any}
    # what takes any object of modal's, or is named by another field
    for name in ("kind", "modal", "proxy"):
        wrong.pop(name, None)

    faults = declared(lambda: spec(**wrong))

    assert isinstance(faults, tuple)
    for name in wrong:
        assert any(fault.startswith(TOLD_AS.get(name, name)) for fault in faults), (name, faults)


@settings(max_examples=50)
@given(values=st.dictionaries(st.sampled_from(sorted(ServerDeclaration.model_fields)), VALUES, min_size=1, max_size=3))
def test_a_class_with_any_attribute_is_defined_and_registered_or_refused_in_gpuserves_own_words(values):
    def make():
        body = {"__module__": __name__, "__qualname__": "Server", "predict": gpuserve.batched(predict), **values}
        body.setdefault("image", ImageSpec.debian("3.11"))
        cls = type("Server", (gpuserve.WarmModelServer,), body)
        return gpuserve.register(modal.App("faulty"))(cls)

    outcome = declared(make)

    assert isinstance(outcome, modal.Cls | tuple) or hasattr(outcome, "url")


def predict(self, batch: list[int]) -> list[int]:
    return batch


BASES = {"debian", "registry", "cuda", "dockerfile"}
STEPS = st.sampled_from(
    [*sorted(BASES), "apt", "pip", "uv_sync", "run", "env", "workdir", "local_file", "local_dir", "local_python"]
)
GIVEN = st.one_of(st.text(max_size=20), st.sampled_from(["a\nb", "$(x)", "a==1", "/a/.."]), VALUES)


@settings(max_examples=150)
@given(step=STEPS, arguments=st.lists(GIVEN, min_size=1, max_size=2))
def test_an_image_takes_or_refuses_whatever_a_step_is_given(step, arguments):
    places = {"local_file": 2, "local_dir": 2}.get(step, 1)
    given_values = (arguments * 2)[:places]
    method = getattr(ImageSpec if step in BASES else ImageSpec.debian("3.11"), step)
    named = {"A": given_values.pop()} if step == "env" else {}
    outcome = declared(lambda: method(*given_values, **named))
    assert isinstance(outcome, ImageSpec | tuple)


MEASURES = st.fixed_dictionaries(
    {"parameters": st.one_of(st.floats(), st.integers(), st.just(7e9), VALUES)},
    optional={
        "dtype": st.one_of(st.sampled_from(["bf16", "int4"]), VALUES),
        "context": st.one_of(st.integers(), VALUES),
        "concurrent": st.one_of(st.integers(), VALUES),
        "kv_bytes_per_token": st.one_of(st.floats(), VALUES),
    },
)


@settings(max_examples=150)
@given(measures=MEASURES)
def test_a_gpu_is_found_or_said_not_to_be_there(measures):
    outcome = declared(lambda: Gpu.fits(**measures))
    assert isinstance(outcome, Gpu | tuple)
