//! Who calls. Where tokens are in use, a caller is the user that the token's subject names, and nobody else's
//! instances exist for it; on a machine of one's own, whoever calls may be any user.

use super::refusal;
use crate::app::{App, AppError, View};
use crate::auth::{Identity, Scopes};
use tonic::{Request, Status};
use warren_api::{Code, Problem};

/// The label that says whose an instance is.
pub(super) const USER: &str = "user_id";

/// Who calls, and what it may do. The envelope puts it into every request.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    scopes: Scopes,
    user: User,
}

/// As whom.
#[derive(Debug, Clone, PartialEq, Eq)]
enum User {
    /// No tokens are in use.
    Any,
    /// The token's subject.
    Only(String),
}

/// Whose an instance is.
pub(super) fn user_of(view: &View) -> Option<&str> {
    view.intent.spec.labels.get(USER).map(String::as_str)
}

impl Caller {
    /// Where no tokens are in use.
    pub(super) fn anybody() -> Self {
        Caller {
            scopes: Scopes::All,
            user: User::Any,
        }
    }

    /// The bearer of a token.
    ///
    /// # Errors
    /// PERMISSION_DENIED when it names nobody.
    pub(super) fn bearer(identity: Identity) -> Result<Self, Status> {
        let user = identity.subject.filter(|subject| !subject.is_empty());
        let user = user.ok_or_else(|| {
            Status::permission_denied(
                "the token names no user: it needs a subject (`sub`), which is the user_id",
            )
        })?;
        Ok(Caller {
            scopes: identity.scopes,
            user: User::Only(user),
        })
    }

    /// Who made a request.
    ///
    /// # Errors
    /// INTERNAL without an envelope.
    pub(super) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        let caller = request.extensions().get::<Caller>().cloned();
        caller.ok_or_else(|| Status::internal("the request came in without being looked at"))
    }

    /// # Errors
    /// PERMISSION_DENIED.
    pub(super) fn must_be_allowed(&self, resource: &str, action: &str) -> Result<(), Status> {
        if self.scopes.allow(resource, action) {
            return Ok(());
        }
        let why = format!("the token does not allow {resource}:{action}");
        Err(refusal::status(&Problem::new(Code::Forbidden, why)))
    }

    /// Whether it may act for the user it names.
    ///
    /// # Errors
    /// PERMISSION_DENIED.
    pub(super) fn must_be(&self, user: &str) -> Result<(), Status> {
        match &self.user {
            User::Any => Ok(()),
            User::Only(own) if own == user => Ok(()),
            User::Only(own) => Err(Status::permission_denied(format!(
                "user_id: the token is {own:?}'s and may not act for {user:?}"
            ))),
        }
    }

    /// Whose instances a list shows: those of the user it asks for, its own where it asks for none; all is `None`.
    ///
    /// # Errors
    /// PERMISSION_DENIED for another user's.
    pub(super) fn lists(&self, asked: String) -> Result<Option<String>, Status> {
        if asked.is_empty() {
            return Ok(match &self.user {
                User::Any => None,
                User::Only(own) => Some(own.clone()),
            });
        }
        self.must_be(&asked)?;
        Ok(Some(asked))
    }

    /// The instance that `vm_id` names: an id or a name, in full.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for none; NOT_FOUND, for another user's too.
    pub(super) fn find(&self, app: &App, vm_id: &str) -> Result<View, Status> {
        if vm_id.is_empty() {
            return Err(refusal::invalid("vm_id", "is required"));
        }
        let view = app.instance_in_full(vm_id)?;
        match &self.user {
            User::Any => Ok(view),
            User::Only(own) if user_of(&view) == Some(own) => Ok(view),
            User::Only(_) => Err(AppError::no_instance(vm_id).into()),
        }
    }
}
