//! Commands about instances that exist: listing them, looking at them, and moving them between states.

use super::{Outcome, Session, each, outcome};
use crate::cli::args::{InspectArgs, NamesArgs, OutputFormat, PsArgs, RemoveArgs};
use crate::cli::failure::CliError;
use crate::cli::output::Detail;
use crate::cli::rows::labels;
use crate::cli::values::{Filter, passes};
use std::future::Future;
use warren_api::client::{ClientError, ListQuery};
use warren_api::instance::{Instance, InstanceState, StandbyInstanceRequest, StartInstanceRequest};

/// Whether `ps` shows an instance without `-a`: everything that is not at rest.
fn is_at_rest(instance: &Instance) -> bool {
    let restarts = instance
        .restart_status
        .as_ref()
        .is_some_and(|status| status.next_attempt_at.is_some());
    match instance.state {
        InstanceState::Stopped => !restarts && !instance.deleting,
        InstanceState::Created
        | InstanceState::Initializing
        | InstanceState::Running
        | InstanceState::Paused
        | InstanceState::Shutdown
        | InstanceState::Standby
        | InstanceState::Unknown => false,
    }
}

/// The instances that `ps` shows, newest first.
fn select(mut instances: Vec<Instance>, args: &PsArgs) -> Vec<Instance> {
    let by_state = args
        .filters
        .iter()
        .any(|filter| matches!(filter, Filter::State(_)));
    instances.retain(|instance| {
        (args.all || by_state || !is_at_rest(instance))
            && passes(
                &args.filters,
                instance.state.into(),
                &instance.name,
                &labels(instance),
            )
    });
    instances.sort_by(|a, b| {
        b.created_at
            .cmp(&a.created_at)
            .then_with(|| a.name.cmp(&b.name))
    });
    instances
}

/// `warren ps`
pub(super) async fn ps(session: &Session, args: PsArgs) -> Outcome {
    let instances = session.client.instances(&ListQuery::default()).await?;
    let detail = if args.no_trunc {
        Detail::Untruncated
    } else {
        Detail::Short
    };
    session.out.list(&select(instances, &args), detail)?;
    Ok(0)
}

/// `warren inspect`
pub(super) async fn inspect(session: &Session, args: InspectArgs) -> Outcome {
    let (found, failure) = each(session, &args.names, |name| async move {
        Ok(session.client.instance(&name).await?)
    })
    .await;
    let instances: Vec<Instance> = found.into_iter().map(|(_, instance)| instance).collect();
    match session.out.format(OutputFormat::Json) {
        OutputFormat::Json => session.out.json(&instances)?,
        OutputFormat::Yaml | OutputFormat::Table | OutputFormat::Wide | OutputFormat::Name => {
            session.out.list(&instances, Detail::Short)?;
        }
    }
    outcome(failure)
}

/// Does the same to each instance and shows those it was done to: their names, as they were given, or the
/// objects that came back.
async fn change<F, Fut>(session: &Session, names: &[String], action: F) -> Outcome
where
    F: Fn(String) -> Fut,
    Fut: Future<Output = Result<Instance, CliError>>,
{
    let (done, failure) = each(session, names, action).await;
    match session.out.format(OutputFormat::Table) {
        OutputFormat::Table | OutputFormat::Wide | OutputFormat::Name => {
            for (name, _) in &done {
                session.out.line(name)?;
            }
        }
        OutputFormat::Json | OutputFormat::Yaml => {
            let instances: Vec<Instance> = done.into_iter().map(|(_, instance)| instance).collect();
            session.out.list(&instances, Detail::Short)?;
        }
    }
    outcome(failure)
}

/// An instance that was started, or why it is not running.
pub(super) fn started(instance: Instance) -> Result<Instance, CliError> {
    match (&instance.state, &instance.state_error) {
        (InstanceState::Stopped | InstanceState::Created, Some(reason))
            if instance.exit_code.is_none() =>
        {
            Err(CliError::refused(
                format!("{} did not start: {reason}", instance.name),
                format!(
                    "`warren logs --source console {name}` has the guest's messages, `warren logs \
                     --source vmm {name}` the hypervisor's",
                    name = instance.name
                ),
            ))
        }
        _ => Ok(instance),
    }
}

async fn start_one(session: &Session, name: &str) -> Result<Instance, CliError> {
    let request = StartInstanceRequest::default();
    started_again(session.client.start_instance(name, &request).await?)
}

/// As [`started`], of an instance that may have run before: then its exit code is of that run.
fn started_again(instance: Instance) -> Result<Instance, CliError> {
    let failed = instance.state == InstanceState::Stopped && instance.state_error.is_some();
    started(Instance {
        exit_code: instance.exit_code.filter(|_| !failed),
        ..instance
    })
}

/// `warren start`
pub(super) async fn start(session: &Session, args: NamesArgs) -> Outcome {
    change(session, &args.names, |name| async move {
        start_one(session, &name).await
    })
    .await
}

/// `warren stop`
pub(super) async fn stop(session: &Session, args: NamesArgs) -> Outcome {
    change(session, &args.names, |name| async move {
        Ok(session.client.stop_instance(&name).await?)
    })
    .await
}

/// `warren restart`
pub(super) async fn restart(session: &Session, args: NamesArgs) -> Outcome {
    change(session, &args.names, |name| async move {
        session.client.stop_instance(&name).await?;
        start_one(session, &name).await
    })
    .await
}

/// `warren pause`
pub(super) async fn pause(session: &Session, args: NamesArgs) -> Outcome {
    change(session, &args.names, |name| async move {
        Ok(session.client.pause_instance(&name).await?)
    })
    .await
}

/// `warren resume`
pub(super) async fn resume(session: &Session, args: NamesArgs) -> Outcome {
    change(session, &args.names, |name| async move {
        Ok(session.client.resume_instance(&name).await?)
    })
    .await
}

/// `warren standby`
pub(super) async fn standby(session: &Session, args: NamesArgs) -> Outcome {
    change(session, &args.names, |name| async move {
        let request = StandbyInstanceRequest::default();
        Ok(session.client.standby_instance(&name, &request).await?)
    })
    .await
}

/// `warren restore`
pub(super) async fn restore(session: &Session, args: NamesArgs) -> Outcome {
    change(session, &args.names, |name| async move {
        Ok(session.client.restore_instance(&name).await?)
    })
    .await
}

/// Whether an instance may be removed without force.
fn check_removal(instance: &Instance, given: &str) -> Result<(), CliError> {
    if given != instance.id && given != instance.name {
        return Err(CliError::refused(
            format!(
                "{given} is only the beginning of an id: rm takes names and whole ids, so that nothing \
                 is removed by mistake"
            ),
            format!("if {} is meant: `warren rm {}`", instance.name, instance.id),
        ));
    }
    match instance.state {
        InstanceState::Stopped | InstanceState::Standby => Ok(()),
        _ if instance.deleting => Ok(()),
        InstanceState::Created
        | InstanceState::Initializing
        | InstanceState::Running
        | InstanceState::Paused
        | InstanceState::Shutdown
        | InstanceState::Unknown => Err(CliError::refused(
            format!("{given} is {}, not stopped", instance.state),
            format!(
                "stop it first with `warren stop {given}`, or remove it as it is with `warren rm -f {given}`"
            ),
        )),
    }
}

/// `warren rm`
pub(super) async fn rm(session: &Session, args: RemoveArgs) -> Outcome {
    let force = args.force;
    let (done, failure) = each(session, &args.names, |name| async move {
        if force {
            return Ok(session.client.delete_instance(&name).await?);
        }
        let instance = session.client.instance(&name).await?;
        check_removal(&instance, &name)?;
        // By id: the name could belong to another one by now.
        Ok(session.client.delete_instance(&instance.id).await?)
    })
    .await;
    removed(session, &done)?;
    outcome(failure)
}

/// Says what is gone: its names, as they were given.
pub(super) fn removed(session: &Session, done: &[(String, ())]) -> Result<(), CliError> {
    #[derive(serde::Serialize)]
    struct Removed<'a> {
        name: &'a str,
    }
    let list = || -> Vec<Removed<'_>> { done.iter().map(|(name, ())| Removed { name }).collect() };
    match session.out.format(OutputFormat::Name) {
        OutputFormat::Json => session.out.json(&list()),
        OutputFormat::Yaml => session.out.yaml(&list()),
        OutputFormat::Name | OutputFormat::Table | OutputFormat::Wide => done
            .iter()
            .try_for_each(|(name, ())| session.out.line(name)),
    }
}

/// Removes an instance that may be gone already.
pub(super) async fn remove_quietly(session: &Session, id: &str) -> Result<(), CliError> {
    match session.client.delete_instance(id).await {
        Ok(()) => Ok(()),
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether the server says that there is no such instance.
pub(super) fn is_missing(error: &ClientError) -> bool {
    error.status() == Some(404)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests fail by panicking")]
    use super::*;
    use crate::cli::rows::tests::instance;
    use crate::cli::values::parse_filter;

    fn names(args: &PsArgs) -> Vec<String> {
        let all = vec![
            instance(r#"{"name":"run","id":"r","created_at":"2026-01-01T00:00:02Z"}"#),
            instance(r#"{"name":"off","id":"o","state":"Stopped"}"#),
            instance(
                r#"{"name":"again","id":"a","state":"Stopped","created_at":"2026-01-01T00:00:03Z",
                    "restart_status":{"attempts":1,"next_attempt_at":"2026-01-01T00:04:00Z"}}"#,
            ),
        ];
        select(all, args).into_iter().map(|i| i.name).collect()
    }

    fn args(all: bool, filters: &[&str]) -> PsArgs {
        PsArgs {
            all,
            filters: filters.iter().map(|f| parse_filter(f).unwrap()).collect(),
            no_trunc: false,
        }
    }

    #[test]
    fn an_exit_code_of_the_run_before_hides_no_failed_start() {
        let failed = instance(
            r#"{"name":"web","state":"Stopped","exit_code":143,"state_error":"host port 80/tcp is taken"}"#,
        );
        let error = started_again(failed).unwrap_err();
        assert!(error.sentence().contains("port 80/tcp is taken"), "{error}");
        let over = instance(r#"{"name":"web","state":"Stopped","exit_code":7}"#);
        assert_eq!(started_again(over).unwrap().exit_code, Some(7));
    }

    #[test]
    fn ps_shows_what_is_not_at_rest_newest_first() {
        assert_eq!(names(&args(false, &[])), ["again", "run"]);
        assert_eq!(names(&args(true, &[])), ["again", "run", "off"]);
        assert_eq!(names(&args(false, &["state=stopped"])), ["again", "off"]);
        assert_eq!(names(&args(true, &["label=tier=db"])), [""; 0]);
    }

    #[test]
    fn a_running_instance_is_not_removed_without_force() {
        let error = check_removal(&instance("{}"), "web").unwrap_err();
        assert!(error.sentence().contains("Running"), "{error}");
        assert!(error.hint().unwrap().contains("warren rm -f web"));
        let stopped = instance(r#"{"state":"Stopped"}"#);
        assert!(check_removal(&stopped, "web").is_ok());
        assert!(check_removal(&stopped, "web-1").is_ok());
        let error = check_removal(&stopped, "web-").unwrap_err();
        assert!(error.hint().unwrap().contains("warren rm web-1"));
    }

    #[test]
    fn a_start_that_failed_is_a_failure_with_its_reason() {
        let failed = instance(r#"{"state":"Stopped","state_error":"no room"}"#);
        let error = started(failed).unwrap_err();
        assert!(error.sentence().contains("no room"), "{error}");
        assert!(started(instance("{}")).is_ok());
        let ended = instance(r#"{"state":"Stopped","exit_code":3}"#);
        assert!(started(ended).is_ok());
    }
}
