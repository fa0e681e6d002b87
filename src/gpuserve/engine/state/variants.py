"""What a function becomes under options, and which of its parameter sets is no set of its own. Pure."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from gpuserve.engine.protocol import api_pb2

__all__ = ["apply_options", "merge_options", "needs_parameters", "own_parameters"]

_PLAIN = (
    "timeout_secs", "target_concurrent_inputs", "max_concurrent_inputs", "batch_max_size", "batch_linger_ms",
    "cloud_provider_str", "routing_region",
)  # fmt: skip
_REPLACED = {
    "replace_secret_ids": "secret_ids",
    "replace_volume_mounts": "volume_mounts",
    "replace_cloud_bucket_mounts": "cloud_bucket_mounts",
}
_VALUES = {"string_default": "string_value", "int_default": "int_value", "bytes_default": "bytes_value",
           "bool_default": "bool_value", "pickle_default": "pickle_value"}  # fmt: skip


def apply_options(options: api_pb2.FunctionOptions, definition: api_pb2.Function) -> None:
    """Lay the options of ``with_options`` and its kin over a definition."""
    if options.secret_ids or options.replace_secret_ids:
        kept = [] if options.replace_secret_ids else list(definition.secret_ids)
        definition.ClearField("secret_ids")
        definition.secret_ids.extend([*kept, *options.secret_ids])
    if options.volume_mounts or options.replace_volume_mounts:
        kept_mounts = [] if options.replace_volume_mounts else list(definition.volume_mounts)
        definition.ClearField("volume_mounts")
        definition.volume_mounts.extend([*kept_mounts, *options.volume_mounts])
    if options.HasField("resources"):
        definition.resources.MergeFrom(options.resources)
    if options.HasField("retry_policy"):
        definition.retry_policy.CopyFrom(options.retry_policy)
    settings = definition.autoscaler_settings
    if options.HasField("concurrency_limit"):
        definition.concurrency_limit = settings.max_containers = options.concurrency_limit
    if options.HasField("warm_pool_size"):
        definition.warm_pool_size = settings.min_containers = options.warm_pool_size
    if options.HasField("buffer_containers"):
        settings.buffer_containers = options.buffer_containers
    if options.HasField("task_idle_timeout_secs"):
        definition.task_idle_timeout_secs = settings.scaledown_window = options.task_idle_timeout_secs
    for name in _PLAIN:
        if options.HasField(name):  # type: ignore[arg-type]
            setattr(definition, name, getattr(options, name))
    if options.HasField("max_concurrent_inputs") and not options.HasField("target_concurrent_inputs"):
        definition.target_concurrent_inputs = 0


def merge_options(first: bytes, then: bytes) -> bytes:
    """Options over options: what the later ones do not name stays."""
    merged, later = api_pb2.FunctionOptions.FromString(first), api_pb2.FunctionOptions.FromString(then)
    for flag, values in _REPLACED.items():
        if getattr(later, flag):
            merged.ClearField(values)  # type: ignore[arg-type]
    merged.MergeFrom(later)
    return merged.SerializeToString(deterministic=True)


def needs_parameters(definition: api_pb2.Function) -> bool:
    """Whether a class cannot be made without being given some parameter."""
    return any(not one.has_default for one in definition.class_parameter_info.schema)


def own_parameters(definition: api_pb2.Function, serialized: bytes) -> bytes:
    """The parameters that tell one pool of a class from its base, in one order; empty if all have their defaults.

    The client sends every parameter, those with their defaults included, in the order in which they
    were given. A class whose defaults were spelled out, one that was made without arguments, and the
    one that its endpoints run in, are one pool.
    """
    info = definition.class_parameter_info
    if not serialized or info.format != api_pb2.ClassParameterInfo.PARAM_SERIALIZATION_FORMAT_PROTO:
        return serialized
    try:
        given = api_pb2.ClassParameterSet.FromString(serialized).parameters
    except DecodeError:
        return serialized
    specs = {spec.name: spec for spec in info.schema}
    all_default = all(one.name in specs and _is_default(specs[one.name], one) for one in given)
    if all_default and not needs_parameters(definition):
        return b""
    ordered = sorted(given, key=lambda one: one.name)
    return api_pb2.ClassParameterSet(parameters=ordered).SerializeToString(deterministic=True)


def _is_default(spec: api_pb2.ClassParameterSpec, value: api_pb2.ClassParameterValue) -> bool:
    default = spec.WhichOneof("default_oneof")
    chosen = value.WhichOneof("value_oneof")
    if not spec.has_default or default is None or chosen is None or _VALUES[default] != chosen:
        return False
    return bool(getattr(spec, default) == getattr(value, chosen))
