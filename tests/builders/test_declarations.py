"""Wrong declarations are refused when they are made, with every fault and the line to write."""

import pickle

import modal
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpuserve
from gpuserve import Batching, DeclarationError, Http, ImageSpec, Scaling, SecretSpec


def faults(declare):
    with pytest.raises(DeclarationError) as refused:
        declare()
    assert pickle.loads(pickle.dumps(refused.value)).faults == refused.value.faults
    return refused.value.faults


def test_all_faults_of_a_class_come_in_one_error():
    def declare():
        class Wrong(gpuserve.WarmModelServer):
            gpu = "H999"
            timeout_s = 0
            cpu = -1
            volumes = {"relative": object()}  # noqa: RUF012
            secrets = ("name",)

            def __init__(self):
                pass

            def local(self):
                pass

            @gpuserve.batched
            async def predict(self, batch: list[int]) -> list[int]:
                return batch

    found = "\n".join(faults(declare))
    assert "local is a name of gpuserve's own" in found
    assert "__init__ is defined; load the model in load()" in found
    assert "predict is async" in found
    assert "'H999' is not a GPU that Modal has; write one of T4, L4" in found
    for field in ("timeout_s", "cpu", "volumes", "secrets"):
        assert field in found


def test_a_plain_override_of_a_batched_method_is_refused():
    class Base(gpuserve.WarmModelServer):
        @gpuserve.batched
        def predict(self, batch: list[int]) -> list[int]:
            return batch

    def declare():
        class Child(Base):
            def predict(self, batch):
                return batch

    assert faults(declare) == ("predict overrides a batched method and is not one; write @gpuserve.batched above it",)


class Plain(gpuserve.WarmModelServer):
    image = ImageSpec.debian("3.11")

    @gpuserve.batched
    def predict(self, batch: list[int]) -> list[int]:
        return batch


def test_registering_tells_what_is_missing_and_refuses_a_second_class_of_the_name():
    app = modal.App("twice")

    class Empty(gpuserve.WarmModelServer):
        pass

    found = faults(lambda: gpuserve.register(app)(Empty))
    assert len(found) == 2
    assert found[0].startswith("image is missing")

    def make():
        return gpuserve.register(app)(type("Server", (Plain,), {"__module__": __name__}))

    server = make()
    with pytest.raises(gpuserve.RegistrationError, match="has a class Server already"):
        make()
    with pytest.raises(gpuserve.RegistrationError, match="registered already"):
        gpuserve.register(app)(server)
    with pytest.raises(gpuserve.RegistrationError, match="cannot be subclassed"):

        class Child(server):
            pass

    with pytest.raises(gpuserve.RegistrationError, match="is not a WarmModelServer"):
        gpuserve.register(app)(int)


def test_an_unannotated_batch_is_refused_with_the_line_to_write():
    class Bare(gpuserve.WarmModelServer):
        image = ImageSpec.debian("3.11")

        @gpuserve.batched
        def predict(self, batch):
            return batch

    found = faults(lambda: gpuserve.register(modal.App("bare"))(Bare))
    assert "write (self, batch: list[In])" in found[0]


@pytest.mark.parametrize(
    ("requirement", "line"),
    [
        ("hypothesis", "'hypothesis=="),
        ("hypothesis>=6", "'hypothesis=="),
        ("hypothesis==6.*", "'hypothesis=="),
        ("nowhere-to-be-found", "'nowhere-to-be-found==VERSION'"),
        ("torch=2", "write name==version"),
        ("pkg @ git+https://example.org/pkg.git@main", "@<40-digit commit>"),
    ],
)
def test_an_unpinned_requirement_is_refused_with_the_pinned_line(requirement, line):
    assert line in faults(lambda: ImageSpec.debian("3.11").pip(requirement))[0]
    assert ImageSpec.debian("3.11").draft().pip(requirement).is_draft


def test_every_unpinned_requirement_is_named_at_once():
    assert len(faults(lambda: ImageSpec.debian("3.11").pip("click", "rich", "modal", index="ftp://x"))) == 4


@pytest.mark.parametrize(
    "declare",
    [
        lambda: ImageSpec.debian("2.7"),
        lambda: ImageSpec.registry("pytorch/pytorch"),
        lambda: ImageSpec.registry("pytorch/pytorch:latest"),
        lambda: ImageSpec.registry("x@sha256:short"),
        lambda: ImageSpec.registry("a b; rm -rf /"),
        lambda: ImageSpec.debian("3.11").apt("ffmpeg; rm -rf /"),
        lambda: ImageSpec.debian("3.11").env(**{"A B": "x"}),
        lambda: ImageSpec.debian("3.11").env(A="x\nRUN evil"),
        lambda: ImageSpec.debian("3.11").run("a\nb"),
        lambda: ImageSpec.debian("3.11").workdir("here"),
        lambda: ImageSpec.debian("3.11").local_file("a", "/a/../../etc/passwd"),
        lambda: Scaling(min_containers=3),
        lambda: Scaling(max_containers=0),
        lambda: Batching(max_batch_size=64, max_queue=10),
        lambda: Http(public_paths=("no-slash",)),
        lambda: Http(max_body_bytes=0),
        lambda: SecretSpec(name="a b"),
        lambda: Scaling(maximum=3),
    ],
)
def test_a_wrong_value_is_a_declaration_error_that_names_it(declare):
    assert all(len(fault) > 20 for fault in faults(declare))


@given(
    st.dictionaries(st.sampled_from([*Scaling.model_fields, "other"]), st.one_of(st.integers(), st.text(), st.none()))
)
def test_no_declaration_ends_in_an_error_from_inside_pydantic(values):
    try:
        outcome: object = Scaling(**values)
    except DeclarationError as error:
        outcome = error.faults
    assert outcome
