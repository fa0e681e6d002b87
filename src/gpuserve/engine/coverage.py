"""Every RPC of Modal's service: built, or not, with what works instead.

``python -m gpuserve.engine.coverage`` prints docs/reference/rpc-coverage.md. A test compares the list
with the descriptor, so that a new modal release shows what it brought.

Source:
    The service descriptor of the wheel ``modal==1.6.4``, 285 RPCs.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from dataclasses import dataclass

from gpuserve.engine import services
from gpuserve.engine.container_rpcs import CONTAINER_RPCS
from gpuserve.engine.protocol import RPCS

__all__ = ["NOT_BUILT", "NotBuilt", "built_rpcs", "instead_of", "render"]


@dataclass(frozen=True, slots=True)
class NotBuilt:
    """RPCs that the engine does not have, and what works instead."""

    topic: str
    instead: str
    names: str

    @property
    def rpcs(self) -> tuple[str, ...]:
        """The names, one by one."""
        return tuple(self.names.split())


NOT_BUILT = (
    NotBuilt(
        "sandboxes",
        "run the code in a function, whose container is as private",
        """
        ContainerFilesystemExec PersistentSandboxCreate PersistentSandboxGet PersistentSandboxResume
        PersistentSandboxTerminate PersistentSandboxTunnelsList SandboxContainerCreateV2 SandboxCreate
        SandboxCreateConnectToken SandboxCreateConnectTokenV2 SandboxCreateV2 SandboxGetCommandRouterAccess
        SandboxGetExitSnapshot SandboxGetExitSnapshotV2 SandboxGetFromName SandboxGetFromNameV2
        SandboxGetLogs SandboxGetResourceUsage SandboxGetStats SandboxGetStatsV2 SandboxGetTaskId
        SandboxGetTaskIdV2 SandboxGetTimeRangeStats SandboxGetTunnels SandboxGetTunnelsV2 SandboxList
        SandboxListV2 SandboxRestore SandboxRestoreV2 SandboxSetName SandboxSetOutboundPolicy
        SandboxSetOutboundPolicyV2 SandboxSnapshot SandboxSnapshotFs SandboxSnapshotFsAsync
        SandboxSnapshotFsAsyncGet SandboxSnapshotGet SandboxSnapshotWait SandboxStdinWrite SandboxTagsGet
        SandboxTagsGetV2 SandboxTagsSet SandboxTagsSetV2 SandboxTerminate SandboxTerminateV2 SandboxWait
        SandboxWaitUntilReady SandboxWaitV2 TaskGetCommandRouterAccess TemplateList
        """,
    ),
    NotBuilt(
        "a shell in a container",
        "print from the function, or debug a server with MyServer.local()",
        """
        ContainerExec ContainerExecGetOutput ContainerExecPutInput ContainerExecWait ContainerLog
        CurlGetAuthToken FunctionStartPtyShell
        """,
    ),
    NotBuilt(
        "clusters of containers",
        "one container with several GPUs, gpu='H100:8'",
        """
        ClusterGet ClusterList ClusterReservationList TaskClusterHello
        """,
    ),
    NotBuilt(
        "network file systems, which Modal replaced",
        "modal.Volume",
        """
        SharedVolumeDelete SharedVolumeGetFile SharedVolumeGetOrCreate SharedVolumeHeartbeat
        SharedVolumeList SharedVolumeListFiles SharedVolumeListFilesStream SharedVolumePutFile
        SharedVolumeRemoveFile
        """,
    ),
    NotBuilt(
        "tunnels and proxies",
        "an endpoint's own address on loopback",
        """
        ProxyAddIp ProxyCreate ProxyDelete ProxyGet ProxyGetOrCreate ProxyList ProxyRemoveIp TunnelStart
        TunnelStop
        """,
    ),
    NotBuilt(
        "accounts, roles, tokens and budgets of a workspace",
        "nothing: the engine has one workspace and one token, both its own",
        """
        AuditLogCount AuditLogList AuditLogPlan AuditLogSettingsGet EnvironmentBillingSummary
        EnvironmentGetBudget EnvironmentGetManaged EnvironmentGetRoles EnvironmentRoleSet
        EnvironmentSetBudget EnvironmentSetDefaultMemberRole EnvironmentSetManaged FunctionGetFlashAuthToken
        ServiceUserCreate ServiceUserDelete ServiceUserInfo ServiceUserList TokenDelete TokenDisable
        TokenEnable TokenFlowCreate TokenFlowWait TokensList UserGroupEnvironmentSet
        WebhookTokenEnvironmentAdd WebhookTokenEnvironmentList
        WebhookTokenEnvironmentRemove
        WorkspaceBillingReport WorkspaceBillingSummary WorkspaceDashboardUrlGet
        WorkspaceMembersList WorkspaceSetDefaultEnvironment WorkspaceSetDefaultEnvironmentSettings
        WorkspaceSetImageBuilderVersion WorkspaceSettings
        """,
    ),
    NotBuilt(
        "domains of one's own",
        "an endpoint's own address on loopback",
        """
        DomainCertificateVerify DomainCreate DomainList
        """,
    ),
    NotBuilt(
        "Modal's hosted model endpoints",
        "a WarmModelServer",
        """
        EndpointCreate EndpointGetByName EndpointGetInfo EndpointGetLibrary EndpointGetLifecycle
        EndpointList EndpointStop
        """,
    ),
    NotBuilt(
        "Modal's flash routing",
        "@app.server and asgi endpoints, which the engine proxies itself",
        """
        FlashContainerDeregister FlashContainerList FlashContainerRegister FlashSetTargetSlotsMetrics
        """,
    ),
    NotBuilt(
        "the input plane, a second way to call",
        "FunctionMap and its companions, which the client falls back to",
        """
        AttemptAwait AttemptRetry AttemptStart FunctionAsyncInvoke FunctionBlobGet FunctionRetryInputs
        MapAwait MapCheckInputs MapStartOrContinue
        """,
    ),
    NotBuilt(
        "metrics kept by Modal's dashboard",
        "gpuserve local status --json, and the logs of the app",
        """
        AppGetTimeRangeStats CliCommandSuggest FunctionCallCount FunctionCallFetch FunctionGetMetrics
        FunctionGetTimeRangeStats MetricsGetInfo ObjectSuggest ServerCountRequests ServerGetMetrics
        ServerGetTimeRangeStats ServerRequestFetch
        """,
    ),
    NotBuilt(
        "named and published images",
        "the image's own layers, which host mode checks",
        """
        ImageBuildChainGet ImageDelete ImageGetByTag ImageListTags ImageNameDelete ImagePublish
        ImageTagRevisions
        """,
    ),
    NotBuilt(
        "older forms of deployment",
        "modal deploy, which publishes a new version",
        """
        AppDeploy AppSetObjects
        """,
    ),
    NotBuilt(
        "changes of environments",
        "an engine with a folder of its own: GPUSERVE_HOME",
        """
        EnvironmentDelete EnvironmentUpdate
        """,
    ),
    NotBuilt(
        "memory snapshots",
        "a cold start: hooks with snap=True run in it",
        """
        ContainerCheckpoint
        """,
    ),
    NotBuilt(
        "volumes as older clients read them",
        "VolumeGetFile2, which modal 1.6.4 sends for both versions, and volume.reload()",
        """
        ContainerReloadVolumes VolumeGetFile
        """,
    ),
)

_INSTEAD = {name: group.instead for group in NOT_BUILT for name in group.rpcs}


def instead_of(rpc: str) -> str:
    """What works instead of an RPC that is not built."""
    return _INSTEAD.get(rpc, "nothing yet")


def built_rpcs() -> frozenset[str]:
    """The RPCs that some service has a method for."""
    found: set[str] = set()
    for module in pkgutil.iter_modules(services.__path__):
        for value in vars(importlib.import_module(f"{services.__name__}.{module.name}")).values():
            if isinstance(value, type) and value.__module__.startswith(services.__name__):
                found.update(name for name in RPCS if hasattr(value, name))
    return frozenset(found)


def render() -> str:
    """The page of the reference."""
    built = sorted(built_rpcs())
    lines = [
        "# RPC coverage",
        "",
        "Generated by `python -m gpuserve.engine.coverage`; a test compares it with the modal wheel.",
        "",
        f"Of the {len(RPCS)} RPCs of Modal's service the engine answers {len(built)}. The others answer UNIMPLEMENTED",
        "with their name and what works instead.",
        "",
        "## Built",
        "",
        "| RPC | containers may call it |",
        "|---|---|",
        *(f"| {name} | {'yes' if name in CONTAINER_RPCS else ''} |" for name in built),
        "",
        "## Not built",
        "",
        "| topic | what works instead | RPCs |",
        "|---|---|---|",
        *(f"| {one.topic} | {one.instead} | {', '.join(one.rpcs)} |" for one in NOT_BUILT),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(render())
