"""What a container may call, and how far each RPC reaches.

A function may look up and call functions of other apps, cancel calls and change an autoscaler: the modal client
offers that inside a container as outside, so those RPCs reach the whole workspace. What makes a container *be* a
container (its inputs, their results, its end) reaches its own ids alone. A test compares these tables with the
descriptor, and calls each RPC of the narrow ones with another container's id.
"""

from __future__ import annotations

__all__ = ["CONTAINER_RPCS", "OWN_DOOR_RPCS", "OWN_ID_RPCS", "WORKSPACE_RPCS"]

# They act for the task whose socket they come over; their requests have no field that could name another.
OWN_DOOR_RPCS = frozenset(
    {"ContainerHeartbeat", "ContainerHello", "ContainerServerLifecycleReady", "TaskResult"},
)

# Own id: refused with PERMISSION_DENIED for the task, the function or the call of another container. What
# FunctionPutOutputs and FunctionCallPutDataOut bring for another's is dropped in silence instead: so is what
# comes late for an input that was the container's own, and the two cannot be told apart.
# Not built, so they reach nothing: ContainerCheckpoint, ContainerLog, FunctionRetryInputs.
OWN_ID_RPCS = frozenset(
    {
        "ContainerCheckpoint", "ContainerLog", "ContainerStop", "FunctionCallGetDataIn", "FunctionCallPutDataOut",
        "FunctionFinishInputs", "FunctionGetDynamicConcurrency", "FunctionGetInputs", "FunctionPutInputs",
        "FunctionPutOutputs", "FunctionRetryInputs",
    }
)  # fmt: skip

# Workspace-wide: what the modal client does in a container for any app's objects, by name or by id. Two of them
# keep a narrower part: FunctionCallCancel ends containers only of the caller's own app or for a call that the caller
# began (a killed container interrupts others' inputs, too; to end a call, its cancellation is enough), and
# SecretGetOrCreate overwrites nothing.
WORKSPACE_RPCS = frozenset(
    {
        "AppGetByDeploymentName", "AppGetLayout", "AppGetOrCreate", "AppLookup", "AuthTokenGet", "BlobCreate",
        "BlobGet", "ClassGet", "ClientHello", "DictClear", "DictContains", "DictContents", "DictDelete", "DictGet",
        "DictGetById", "DictGetOrCreate", "DictHeartbeat", "DictLen", "DictPop", "DictUpdate",
        "EnvironmentGetOrCreate", "FunctionBindParams", "FunctionCallCancel", "FunctionCallFromId",
        "FunctionCallGetDataOut", "FunctionCallGetInfo", "FunctionGet", "FunctionGetById", "FunctionGetCallGraph",
        "FunctionGetCurrentStats", "FunctionGetOutputs", "FunctionGetSerialized", "FunctionMap",
        "FunctionUpdateSchedulingParams", "MountPutFile", "QueueClear", "QueueDelete", "QueueGet", "QueueGetById",
        "QueueGetOrCreate", "QueueHeartbeat", "QueueLen", "QueueNextItems", "QueuePut", "SecretGetOrCreate",
        "VolumeCommit", "VolumeCopyFiles", "VolumeCopyFiles2", "VolumeGetById", "VolumeGetFile", "VolumeGetFile2",
        "VolumeGetOrCreate", "VolumeHeartbeat", "VolumeListFiles", "VolumeListFiles2", "VolumePutFiles",
        "VolumePutFiles2", "VolumeReload", "VolumeRemoveFile", "VolumeRemoveFile2", "WorkspaceBillingRates",
        "WorkspaceNameLookup",
    }
)  # fmt: skip

CONTAINER_RPCS = OWN_DOOR_RPCS | OWN_ID_RPCS | WORKSPACE_RPCS
