"""The autoscaler's arithmetic: within its limits for any load, and what was set last counts."""

from hypothesis import given
from hypothesis import strategies as st

from gpuserve.engine.protocol import api_pb2
from gpuserve.engine.state.autoscaler import Scaling, desired_containers, scaling_of, settings_of
from gpuserve.engine.state.variants import apply_options, merge_options, needs_parameters, own_parameters

small, load = st.integers(0, 12), st.integers(0, 500)
scalings = st.builds(
    lambda most, least, buffer, target, yields: Scaling(min(least, most), most, buffer, 60.0, target, yields),
    st.integers(1, 20),
    small,
    small,
    st.integers(1, 10),
    st.booleans(),
)


@given(scalings, load, load, st.data())
def test_the_wish_is_within_the_limits_and_enough_for_the_load(scaling, queued, running, data):
    alone = data.draw(st.integers(0, queued))
    waiting = data.draw(st.integers(0, running))
    wanted = desired_containers(scaling, queued=queued, running=running, alone=alone, waiting=waiting)
    assert scaling.least <= wanted <= scaling.cap(waiting)
    if wanted < scaling.cap(waiting):
        assert (wanted - alone) * scaling.target >= queued - alone + running
    if not queued + running:
        assert wanted == scaling.least


@given(scalings, load, load, st.integers(0, 50))
def test_more_load_never_asks_for_fewer_containers(scaling, queued, running, more):
    before = desired_containers(scaling, queued=queued, running=running)
    assert desired_containers(scaling, queued=queued + more, running=running) >= before
    assert desired_containers(scaling, queued=queued, running=running + more) >= before


@given(st.integers(1, 8), st.integers(1, 60))
def test_inputs_that_all_wait_for_their_children_never_use_the_machine_up(cap, depth):
    scaling = Scaling(0, cap, 0, 60.0, 1, yields=True)
    containers = 0
    for waiting in range(depth):
        wanted = desired_containers(scaling, queued=1, running=waiting, waiting=waiting)
        assert wanted == containers + 1, "the next level has no container to run in"
        containers = wanted


def test_a_function_that_calls_itself_without_end_is_stopped_somewhere():
    scaling = Scaling(0, 4, 0, 60.0, 1, yields=True)
    assert desired_containers(scaling, queued=1, running=10_000, waiting=10_000) == 104
    capped = Scaling(0, 4, 0, 60.0, 1, yields=False)
    assert desired_containers(capped, queued=1, running=4, waiting=4) == 4


def settings(**values):
    return api_pb2.AutoscalerSettings(**values)


def test_what_was_changed_while_it_runs_counts_over_what_was_declared_zeros_included():
    declared = api_pb2.Function(
        warm_pool_size=3,
        concurrency_limit=7,
        task_idle_timeout_secs=9,
        autoscaler_settings=settings(min_containers=3, max_containers=7, scaledown_window=9),
    )
    assert scaling_of(declared, settings(), 4) == Scaling(3, 7, 0, 9.0, 1, yields=False)
    assert scaling_of(declared, settings(min_containers=0), 4).least == 0
    uncapped = scaling_of(declared, settings(max_containers=0), 4)
    assert (uncapped.most, uncapped.yields) == (4, True)
    assert settings_of(declared, settings(scaledown_window=2)).scaledown_window == 2


def test_a_minimum_above_the_machines_cap_is_kept_and_above_the_users_cap_is_not():
    assert scaling_of(api_pb2.Function(autoscaler_settings=settings(min_containers=9)), settings(), 4).least == 9
    both = api_pb2.Function(autoscaler_settings=settings(min_containers=9, max_containers=2))
    assert scaling_of(both, settings(), 4).least == 2
    assert scaling_of(both, settings(), 4, keeps_none=True).least == 0


def test_the_target_is_the_one_that_was_asked_for_or_what_fits_in_a_container():
    assert scaling_of(api_pb2.Function(max_concurrent_inputs=8), settings(), 4).target == 8
    assert scaling_of(api_pb2.Function(max_concurrent_inputs=8, target_concurrent_inputs=3), settings(), 4).target == 3
    assert scaling_of(api_pb2.Function(batch_max_size=16), settings(), 4).target == 16


PROTO = api_pb2.ClassParameterInfo.PARAM_SERIALIZATION_FORMAT_PROTO
TEXT = api_pb2.ClassParameterSpec(name="text", has_default=True, string_default="a")
COUNT = api_pb2.ClassParameterSpec(name="count", has_default=True, int_default=0)
NEEDED = api_pb2.ClassParameterSpec(name="needed")


def a_class(*schema):
    return api_pb2.Function(class_parameter_info=api_pb2.ClassParameterInfo(format=PROTO, schema=schema))


def given_parameters(**values):
    fields = {str: "string_value", int: "int_value"}
    parameters = [
        api_pb2.ClassParameterValue(name=name, **{fields[type(value)]: value}) for name, value in values.items()
    ]
    return api_pb2.ClassParameterSet(parameters=parameters).SerializeToString()


def test_parameters_that_have_their_defaults_are_no_set_of_their_own():
    both = a_class(TEXT, COUNT)
    assert own_parameters(both, given_parameters(text="a", count=0)) == b""
    assert own_parameters(both, given_parameters(count=0)) == b""
    assert own_parameters(both, given_parameters(text="b", count=0)) != b""
    assert own_parameters(both, given_parameters(text="a", count=1)) != b""
    assert own_parameters(a_class(TEXT, NEEDED), given_parameters(text="a")) != b""
    assert needs_parameters(a_class(TEXT, NEEDED))
    assert not needs_parameters(both)


def test_the_order_in_which_parameters_were_given_makes_no_difference():
    both = a_class(TEXT, COUNT)
    one, other = given_parameters(text="b", count=1), given_parameters(count=1, text="b")
    assert one != other
    assert own_parameters(both, one) == own_parameters(both, other)


@given(st.binary(max_size=30))
def test_parameters_that_are_no_such_message_are_left_as_they_are(garbage):
    assert own_parameters(api_pb2.Function(), garbage) == garbage
    own_parameters(a_class(TEXT), garbage)


def test_options_over_options_replace_what_they_name_and_keep_the_rest():
    first = api_pb2.FunctionOptions(secret_ids=["a"], replace_secret_ids=True, timeout_secs=5, max_concurrent_inputs=4)
    then = api_pb2.FunctionOptions(secret_ids=["b"], replace_secret_ids=True, concurrency_limit=2)
    merged = api_pb2.FunctionOptions.FromString(merge_options(first.SerializeToString(), then.SerializeToString()))
    definition = api_pb2.Function(secret_ids=["x"], target_concurrent_inputs=2)
    apply_options(merged, definition)
    assert list(definition.secret_ids) == ["b"]
    assert (definition.timeout_secs, definition.concurrency_limit) == (5, 2)
    assert (definition.max_concurrent_inputs, definition.target_concurrent_inputs) == (4, 0)
