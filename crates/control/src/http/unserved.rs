//! Routes of the instance API that are not served yet: each says so, in words.

use super::Http;
use super::extract::Params;
use super::reply::Failure;
use axum::Router;
use axum::routing::{MethodFilter, MethodRouter, on};
use warren_api::Code;

/// A route.
pub(super) struct Route {
    pub(super) method: MethodFilter,
    pub(super) verb: &'static str,
    pub(super) path: &'static str,
    pub(super) operation: &'static str,
    /// What there is none of yet.
    pub(super) what: &'static str,
    /// Query parameters the contract has.
    pub(super) query: &'static [&'static str],
}

macro_rules! unserved {
    ($($verb:ident $path:literal $operation:ident $what:literal [$($query:literal),*];)*) => {
        pub(super) const ROUTES: &[Route] = &[$(Route {
            method: MethodFilter::$verb,
            verb: stringify!($verb),
            path: $path,
            operation: stringify!($operation),
            what: $what,
            query: &[$($query),*],
        },)*];
    };
}

unserved! {
    POST "/resources/memory/reclaim" reclaimMemory "memory reclaim" [];
    POST "/instances/{id}/fork" forkInstance "fork" [];
    POST "/instances/{id}/snapshots" createInstanceSnapshot "snapshots" [];
    GET "/instances/{id}/snapshot-schedule" getInstanceSnapshotSchedule "snapshot schedules" [];
    PUT "/instances/{id}/snapshot-schedule" setInstanceSnapshotSchedule "snapshot schedules" [];
    DELETE "/instances/{id}/snapshot-schedule" deleteInstanceSnapshotSchedule "snapshot schedules" [];
    POST "/instances/{id}/snapshots/{snapshotId}/restore" restoreInstanceSnapshot "snapshots" [];
    GET "/snapshots" listSnapshots "snapshots" ["source_instance_id", "kind", "name", "tags"];
    GET "/snapshots/{snapshotId}" getSnapshot "snapshots" [];
    DELETE "/snapshots/{snapshotId}" deleteSnapshot "snapshots" [];
    POST "/snapshots/{snapshotId}/fork" forkSnapshot "snapshots" [];
    GET "/instances/{id}/auto-standby/status" getAutoStandbyStatus "automatic standby" [];
    POST "/instances/{id}/auto-standby/hold" holdAutoStandby "automatic standby" [];
    POST "/instances/{id}/volumes/{volumeId}" attachVolume "volumes" [];
    DELETE "/instances/{id}/volumes/{volumeId}" detachVolume "volumes" [];
    GET "/volumes" listVolumes "volumes" ["tags"];
    POST "/volumes" createVolume "volumes" [];
    POST "/volumes/from-archive" createVolumeFromArchive "volumes" ["name", "size_gb", "id", "tags"];
    GET "/volumes/{id}" getVolume "volumes" [];
    DELETE "/volumes/{id}" deleteVolume "volumes" [];
    GET "/devices" listDevices "host devices" ["tags"];
    POST "/devices" createDevice "host devices" [];
    GET "/devices/available" listAvailableDevices "host devices" [];
    GET "/devices/{id}" getDevice "host devices" [];
    DELETE "/devices/{id}" deleteDevice "host devices" [];
    GET "/ingresses" listIngresses "ingresses" ["tags"];
    POST "/ingresses" createIngress "ingresses" [];
    GET "/ingresses/{id}" getIngress "ingresses" [];
    DELETE "/ingresses/{id}" deleteIngress "ingresses" [];
    GET "/builds" listBuilds "builds" ["tags"];
    POST "/builds" createBuild "builds" [];
    GET "/builds/{id}" getBuild "builds" [];
    DELETE "/builds/{id}" cancelBuild "builds" [];
    GET "/builds/{id}/events" getBuildEvents "builds" ["follow"];
    GET "/builders" listBuilders "builders" ["tags"];
    POST "/builders" createBuilder "builders" [];
    GET "/builders/{id}" getBuilder "builders" [];
    DELETE "/builders/{id}" deleteBuilder "builders" [];
    POST "/builders/{id}/prune" pruneBuilder "builders" [];
}

pub(super) fn add(mut router: Router<Http>) -> Router<Http> {
    for route in ROUTES {
        let method: MethodRouter<Http> = on(route.method, move |mut params: Params| async move {
            for name in route.query {
                params.all(name);
                params.map(name);
            }
            if let Err(failure) = params.finish() {
                return failure;
            }
            Failure::new(
                Code::NotImplemented,
                format!("this server has no {} yet", route.what),
            )
        });
        router = router.route(route.path, method);
    }
    router
}
