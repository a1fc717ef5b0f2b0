//! VMs from their creation to their end.

use super::caller::{Caller, user_of};
use super::convert::{self, STATUSES, status_of};
use super::refusal::{self, invalid};
use super::wire::{
    CreateVmRequest, DeleteVmRequest, ListVMsRequest, ListVMsResponse, StopVmRequest,
    UpdateResourceLimitsRequest, VmResponse,
};
use crate::app::{App, AppError, Creation, JobUpdate, Limit, LimitsError, TENANT, Until, View};
use futures::StreamExt;
use tonic::Status;
use warren_api::instance::CreateInstanceNetwork;
use warren_api::{Code, CreateImageRequest, StartInstanceRequest};
use warren_core::instance::NetworkChoice;
use warren_core::state::StateName;

/// A page where no length is given, and the longest.
const USUAL_PAGE: i32 = 100;
const LONGEST_PAGE: i32 = 1000;

pub(super) async fn create(
    app: &App,
    caller: &Caller,
    request: CreateVmRequest,
) -> Result<VmResponse, Status> {
    let mut request = convert::creation(request)?;
    caller.must_be(&request.labels[super::caller::USER])?;
    let network = app.network_choice().await?;
    if network == NetworkChoice::Disabled && request.port_mappings.is_empty() {
        // There is no field for it in this API, and much to be done without.
        request.network = Some(CreateInstanceNetwork {
            enabled: Some(false),
            ..CreateInstanceNetwork::default()
        });
    }
    let image = request.image.clone();
    let creation = Creation {
        tenant: TENANT.to_owned(),
        request,
        until: Until::Started,
        key: None,
    };
    let view = match app.create(creation.clone()).await {
        Err(AppError::Missing {
            code: Code::ImageNotFound,
            ..
        }) => {
            caller.must_be_allowed("image", "write")?;
            pull(app, image).await?;
            app.create(creation).await?
        }
        made => made?,
    };
    Ok(convert::response(
        &view,
        match network {
            NetworkChoice::Default => "the VM was created",
            NetworkChoice::Disabled => "the VM was created, without a network: this host has none",
        },
    ))
}

/// Pulls an image as `warren run` does. A caller that goes away leaves it coming: who asks again joins.
async fn pull(app: &App, image: String) -> Result<(), Status> {
    let request = CreateImageRequest {
        name: image,
        ..CreateImageRequest::default()
    };
    let mut updates = app.pull_followed(request).await?;
    while let Some(update) = updates.next().await {
        match update {
            JobUpdate::Progress(_) => {}
            JobUpdate::Done(_) => return Ok(()),
            JobUpdate::Failed(problem) => return Err(refusal::status(&problem)),
        }
    }
    Err(stopping())
}

/// What cannot go on because the server ends.
pub(super) fn stopping() -> Status {
    Status::unavailable("the server is stopping: try again when it is back")
}

pub(super) async fn start(app: &App, caller: &Caller, vm_id: &str) -> Result<VmResponse, Status> {
    let found = caller.find(app, vm_id)?;
    let id = found.intent.id.as_str();
    let view = match found.status.state.name() {
        // This API knows no other way out of a pause.
        StateName::Paused => app.resume_instance(id).await?,
        _ => {
            let request = StartInstanceRequest::default();
            app.start_instance(id, request).await?
        }
    };
    Ok(convert::response(&view, "the VM was started"))
}

pub(super) async fn stop(
    app: &App,
    caller: &Caller,
    request: StopVmRequest,
) -> Result<VmResponse, Status> {
    let seconds = convert::stop_seconds(request.timeout_seconds)?;
    let found = caller.find(app, &request.vm_id)?;
    let id = found.intent.id.as_str();
    let view = app.stop_instance_within(id, seconds).await?;
    match view.status.state.name() {
        StateName::Stopped => Ok(convert::response(&view, "the VM was stopped")),
        _ => Err(Status::deadline_exceeded(
            "the VM did not stop in time; it is still being stopped",
        )),
    }
}

pub(super) async fn delete(
    app: &App,
    caller: &Caller,
    request: DeleteVmRequest,
) -> Result<VmResponse, Status> {
    let found = caller.find(app, &request.vm_id)?;
    if !request.force && is_up(&found) {
        return Err(Status::failed_precondition(format!(
            "the VM is {}: stop it first, or set force",
            status_of(&found)
        )));
    }
    app.delete_instance(found.intent.id.as_str()).await?;
    Ok(VmResponse {
        status: "stopped".to_owned(),
        message: "the VM was deleted".to_owned(),
        ip_address: String::new(),
        ..convert::response(&found, "")
    })
}

/// Whether something would be ended by its removal.
fn is_up(view: &View) -> bool {
    view.status.state.vmm().is_some() || status_of(view) == "created"
}

pub(super) fn list(
    app: &App,
    caller: &Caller,
    request: ListVMsRequest,
) -> Result<ListVMsResponse, Status> {
    let user = caller.lists(request.user_id)?;
    if !request.status.is_empty() && !STATUSES.contains(&request.status.as_str()) {
        let known = format!("must be one of {}", STATUSES.join(", "));
        return Err(invalid("status", known));
    }
    let limit = match request.limit {
        0 => USUAL_PAGE,
        limit if (1..=LONGEST_PAGE).contains(&limit) => limit,
        _ => {
            return Err(invalid(
                "limit",
                format!("must be 1 to {LONGEST_PAGE}, or 0 for {USUAL_PAGE}"),
            ));
        }
    };
    let offset = usize::try_from(request.offset);
    let offset = offset.map_err(|_| invalid("offset", "must not be negative"))?;
    let mut views = app.all_instances();
    views.retain(|view| {
        let users = user
            .as_deref()
            .is_none_or(|user| user_of(view) == Some(user));
        users && (request.status.is_empty() || request.status == status_of(view))
    });
    views.sort_by(|a, b| {
        (a.intent.created_at, &a.intent.id).cmp(&(b.intent.created_at, &b.intent.id))
    });
    let page = views
        .iter()
        .skip(offset)
        .take(limit.unsigned_abs() as usize);
    Ok(ListVMsResponse {
        total: i32::try_from(views.len()).unwrap_or(i32::MAX),
        vms: page.map(convert::info).collect(),
    })
}

pub(super) async fn update_limits(
    app: &App,
    caller: &Caller,
    request: UpdateResourceLimitsRequest,
) -> Result<VmResponse, Status> {
    let limits = convert::limits(request.limits)?;
    if limits.is_empty() {
        return Err(invalid("limits", "name at least one"));
    }
    let found = caller.find(app, &request.vm_id)?;
    match app.change_limits(found.intent.id.as_str(), limits).await {
        Ok(view) => Ok(convert::response(&view, "the limits were changed")),
        Err(LimitsError::App(error)) => Err(error.into()),
        Err(LimitsError::Fixed(fixed)) => {
            let each: Vec<String> = fixed
                .iter()
                .map(|(limit, why)| format!("{} cannot be changed: {why}", field(*limit)))
                .collect();
            Err(Status::failed_precondition(format!(
                "nothing was changed: {}",
                each.join("; ")
            )))
        }
    }
}

fn field(limit: Limit) -> &'static str {
    match limit {
        Limit::Processors => "cpu_count",
        Limit::Memory => "memory_mb",
        Limit::Disk => "disk_size_gb",
    }
}
