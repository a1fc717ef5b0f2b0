//! The methods, each a use case.

use super::caller::Caller;
use super::wire::container_service_server::ContainerService;
use super::wire::{
    CreateDirectoryRequest, CreateDirectoryResponse, CreateSnapshotRequest, CreateVmRequest,
    DeleteFileRequest, DeleteFileResponse, DeleteVmRequest, ExecuteCommandRequest,
    ExecuteCommandResponse, GetLogsRequest, GetResourceUsageRequest, GetVmStatusRequest,
    ListFilesRequest, ListFilesResponse, ListVMsRequest, ListVMsResponse, ReadFileRequest,
    ReadFileResponse, ResourceUsageResponse, RestoreSnapshotRequest, SnapshotResponse,
    StartVmRequest, StopVmRequest, UpdateResourceLimitsRequest, VmResponse, VmStatusResponse,
    WriteFileRequest, WriteFileResponse,
};
use super::{commands, files, lifecycle, logs, usage};
use crate::App;
use tonic::{Request, Response, Status};

pub(super) struct Service {
    pub(super) app: App,
}

type Answer<T> = Result<Response<T>, Status>;

/// Who asks, and what.
fn opened<T>(request: Request<T>) -> Result<(Caller, T), Status> {
    let caller = Caller::of(&request)?;
    Ok((caller, request.into_inner()))
}

#[tonic::async_trait]
impl ContainerService for Service {
    type ExecuteCommandStreamStream = commands::Pieces;
    type GetLogsStream = logs::Entries;

    async fn create_vm(&self, request: Request<CreateVmRequest>) -> Answer<VmResponse> {
        let (caller, request) = opened(request)?;
        let made = lifecycle::create(&self.app, &caller, request).await?;
        Ok(Response::new(made))
    }

    async fn start_vm(&self, request: Request<StartVmRequest>) -> Answer<VmResponse> {
        let (caller, request) = opened(request)?;
        let started = lifecycle::start(&self.app, &caller, &request.vm_id).await?;
        Ok(Response::new(started))
    }

    async fn stop_vm(&self, request: Request<StopVmRequest>) -> Answer<VmResponse> {
        let (caller, request) = opened(request)?;
        let stopped = lifecycle::stop(&self.app, &caller, request).await?;
        Ok(Response::new(stopped))
    }

    async fn delete_vm(&self, request: Request<DeleteVmRequest>) -> Answer<VmResponse> {
        let (caller, request) = opened(request)?;
        let deleted = lifecycle::delete(&self.app, &caller, request).await?;
        Ok(Response::new(deleted))
    }

    async fn get_vm_status(
        &self,
        request: Request<GetVmStatusRequest>,
    ) -> Answer<VmStatusResponse> {
        let (caller, request) = opened(request)?;
        let described = usage::described(&self.app, &caller, &request.vm_id).await?;
        Ok(Response::new(described))
    }

    async fn list_v_ms(&self, request: Request<ListVMsRequest>) -> Answer<ListVMsResponse> {
        let (caller, request) = opened(request)?;
        Ok(Response::new(lifecycle::list(&self.app, &caller, request)?))
    }

    async fn execute_command(
        &self,
        request: Request<ExecuteCommandRequest>,
    ) -> Answer<ExecuteCommandResponse> {
        let (caller, request) = opened(request)?;
        let ended = commands::run(&self.app, &caller, request).await?;
        Ok(Response::new(ended))
    }

    async fn execute_command_stream(
        &self,
        request: Request<ExecuteCommandRequest>,
    ) -> Answer<commands::Pieces> {
        let (caller, request) = opened(request)?;
        let pieces = commands::stream(&self.app, &caller, request).await?;
        Ok(Response::new(pieces))
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Answer<ReadFileResponse> {
        let (caller, request) = opened(request)?;
        let answer = files::read(&self.app, &caller, request).await?;
        Ok(Response::new(answer))
    }

    async fn write_file(&self, request: Request<WriteFileRequest>) -> Answer<WriteFileResponse> {
        let (caller, request) = opened(request)?;
        let answer = files::write(&self.app, &caller, request).await?;
        Ok(Response::new(answer))
    }

    async fn delete_file(&self, request: Request<DeleteFileRequest>) -> Answer<DeleteFileResponse> {
        let (caller, request) = opened(request)?;
        let answer = files::delete(&self.app, &caller, request).await?;
        Ok(Response::new(answer))
    }

    async fn list_files(&self, request: Request<ListFilesRequest>) -> Answer<ListFilesResponse> {
        let (caller, request) = opened(request)?;
        let answer = files::list(&self.app, &caller, request).await?;
        Ok(Response::new(answer))
    }

    async fn create_directory(
        &self,
        request: Request<CreateDirectoryRequest>,
    ) -> Answer<CreateDirectoryResponse> {
        let (caller, request) = opened(request)?;
        let made = files::create_directory(&self.app, &caller, request).await?;
        Ok(Response::new(made))
    }

    async fn get_resource_usage(
        &self,
        request: Request<GetResourceUsageRequest>,
    ) -> Answer<ResourceUsageResponse> {
        let (caller, request) = opened(request)?;
        let used = usage::usage(&self.app, &caller, &request.vm_id).await?;
        Ok(Response::new(used))
    }

    async fn update_resource_limits(
        &self,
        request: Request<UpdateResourceLimitsRequest>,
    ) -> Answer<VmResponse> {
        let (caller, request) = opened(request)?;
        let updated = lifecycle::update_limits(&self.app, &caller, request).await?;
        Ok(Response::new(updated))
    }

    async fn get_logs(&self, request: Request<GetLogsRequest>) -> Answer<logs::Entries> {
        let (caller, request) = opened(request)?;
        let entries = logs::logs(&self.app, &caller, request).await?;
        Ok(Response::new(entries))
    }

    async fn create_snapshot(&self, _: Request<CreateSnapshotRequest>) -> Answer<SnapshotResponse> {
        Err(no_snapshots())
    }

    async fn restore_snapshot(&self, _: Request<RestoreSnapshotRequest>) -> Answer<VmResponse> {
        Err(no_snapshots())
    }
}

fn no_snapshots() -> Status {
    Status::unimplemented("there are no snapshots yet: stop the VM, its disk stays as it is")
}
