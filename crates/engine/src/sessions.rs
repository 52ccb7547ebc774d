//! What clients do to sessions: create, send events, update, archive, delete, watch.
//!
//! Every one of them decides under the session's lock and either happens as a whole or not at all.

use std::sync::Arc;

use selfsame_store::{
    Actor, AddError, AppendError, Appended, Change, Cold, End, EventQuery, FirstState, Guard, Head,
    LeaseChange, NewSession, Row, SessionRecord, SkillMount, StoreError,
};
use selfsame_types::{
    ApiError, EnvironmentId, EventId, FileId, SessionId, ThreadId, Timestamp, VaultId, WorkspaceId,
    agent::AgentSnapshot,
    event::EventType,
    inbound::{ConfirmationResult, InboundEvent},
    page::Order,
    session::NewResource,
};

use crate::{
    Engine, Inner,
    change::{change, text, thread_view, works},
    content, fail,
    hub::Subscription,
    machine::{Input, InputKind, Machine, Status, Step},
    outcomes,
    prompt::{Spec, uses_mcp},
    resources::{self, ResourceError},
    runner::{Begun, Start, begin},
    runners::Expected,
    workbench::has_packages,
};

/// Another version of this program may be able to read what this one cannot.
pub(crate) const UNREADABLE_PAUSE: std::time::Duration = std::time::Duration::from_mins(1);

/// A session to create; references are resolved already.
#[derive(Debug)]
pub struct NewSessionRequest {
    pub workspace: WorkspaceId,
    /// By the database's clock.
    pub created_at: Timestamp,
    pub agent: AgentSnapshot,
    pub environment_id: EnvironmentId,
    /// The environment's configuration as JSON text.
    pub environment: String,
    pub title: Option<String>,
    /// JSON text.
    pub metadata: String,
    pub resources: Vec<NewResource>,
    pub events: Vec<InboundEvent>,
    /// What the agent's skills were resolved to, in their order.
    pub skills: Vec<SkillMount>,
    /// They are there; in the order in which they are searched.
    pub vault_ids: Vec<VaultId>,
    pub actor: Actor,
}

/// What an update does to the parts of a session that clients edit.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionEdit {
    pub title: Option<String>,
    /// JSON text.
    pub metadata: String,
    /// JSON text.
    pub agent: String,
    /// The fields of `session.updated`: only what changed, never empty.
    pub changed: String,
}

/// Events that were taken, as they stand in the log.
#[derive(Debug)]
pub struct Sent {
    pub primary: ThreadId,
    pub rows: Vec<Row>,
}

/// A stream about to be served.
#[derive(Debug)]
pub enum Watch {
    Live {
        subscription: Subscription,
        primary: ThreadId,
    },
    /// The session is over: this is its last event.
    Over(Option<Row>),
}

impl Engine {
    /// Creates a session and, with events, starts its first turn.
    ///
    /// # Errors
    /// [`AppendError::Refused`] for events that this server cannot take.
    pub async fn session_create(
        &self,
        request: NewSessionRequest,
    ) -> Result<SessionRecord, AppendError> {
        let engine = self.clone();
        self.whole(async move { engine.create(request).await })
            .await
    }

    /// Runs to its end although the client may hang up. What is between a commit and the runner that
    /// it takes the lease for must not be dropped.
    async fn whole<T: Send + 'static>(&self, work: impl Future<Output = T> + Send + 'static) -> T {
        match self.inner.tasks.spawn(work).await {
            Ok(done) => done,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn create(&self, mut request: NewSessionRequest) -> Result<SessionRecord, AppendError> {
        let inner = &self.inner;
        let (store, list) = (&inner.store, "initial_events");
        outcomes::read_rubrics(store, request.workspace, list, &mut request.events).await?;
        let inputs = inputs(&request.events)?;
        let pins = content::check(store, request.workspace, list, &request.events).await?;
        let (id, thread) = (SessionId::new(), ThreadId::new());
        let environment = serde_json::from_str(&request.environment).map_err(
            StoreError::corrupt("environments", "config", request.environment_id),
        )?;
        let spec = Arc::new(Spec::new(
            request.agent.clone(),
            &environment,
            &inner.models,
        ));
        // What has to be mounted first keeps the first request waiting.
        let needs_sandbox = request.agent.needs_sandbox();
        let equipped = !request.resources.is_empty()
            || !request.skills.is_empty()
            || (needs_sandbox && has_packages(&environment));
        let names: Vec<_> = request.resources.iter().map(file_id).collect();
        let (workspace, at) = (request.workspace, request.created_at);
        let resources = resources::rows(&inner.store, workspace, request.resources, at).await?;
        let here = inner.room() > 0;
        let now = request.created_at;
        let machine = Machine::new(thread, request.agent.spec.name.clone());
        let mut new_id = EventId::new;
        let mut step = Step::new(machine, 0, now, &mut new_id);
        step.accept(id, &inputs)?;
        let owner = (here && works(&step.machine)).then_some(inner.server);
        let agent = text(&request.agent);
        let begun = match owner {
            Some(_) if !equipped && !uses_mcp(&agent) => begin(&mut step, |_| true),
            _ => Vec::new(),
        };
        let (machine, written) = step.finish();
        let change = change(&machine, written, now, LeaseChange::Keep);
        let first = FirstState {
            status: change.status,
            thread_status: machine.primary().status.as_str(),
            thread_view: text(&thread_view(machine.primary(), now)),
            machine: change.machine,
            view: change.view,
            queued: change.queued,
            wake_at: change.wake_at,
            events: change.events,
            owner,
        };
        let new = NewSession {
            id,
            workspace: request.workspace,
            agent_id: request.agent.id,
            agent_version: request.agent.version,
            environment_id: request.environment_id,
            agent,
            environment: request.environment,
            title: request.title,
            metadata: request.metadata,
            created_by: request.actor.key,
            request_id: request.actor.request,
            created_at: now,
            thread,
            thread_agent: text(&request.agent.thread_agent()),
            equipped,
            resources,
            skills: request.skills,
            vault_ids: request.vault_ids,
        };
        let created = inner
            .store
            .session_create(new, first)
            .await
            .map_err(|error| refused(&names, error))?
            .ok_or(AppendError::NotFound)?;
        // Nobody drives it yet. Should this server end here, the next one finds the files by their ids.
        if let Err(error) = pins.keep(&inner.store, workspace, id).await {
            tracing::warn!(session = %id, %error, "a file could not be kept for a new session");
        }
        inner.published(id, &created.rows);
        if needs_sandbox || equipped {
            inner.provision(id);
        }
        if owner.is_some() {
            let start = Start {
                session: id,
                epoch: created.record.epoch,
                machine,
                last_seq: created.record.last_seq,
                spec,
                equipped,
                unclean: false,
                begun,
                rows: created.rows,
            };
            // Nobody else knows its id yet.
            inner.drive(start, Some(inner.runners.expect(id)));
        } else if created.record.status == "running" {
            inner.notifier.wake(id, created.record.last_seq);
        }
        Ok(created.record)
    }

    /// Takes a client's events, all or none. Answers them as they stand in the log now: inputs that
    /// are queued in their queued form.
    ///
    /// # Errors
    /// 400 in the API's words when the session cannot take one of them now.
    pub async fn session_send(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        mut events: Vec<InboundEvent>,
        actor: &Actor,
    ) -> Result<Sent, AppendError> {
        let store = &self.inner.store;
        outcomes::read_rubrics(store, workspace, "events", &mut events).await?;
        let inputs = inputs(&events)?;
        let pins = content::check(store, workspace, "events", &events).await?;
        // Before the events: whoever reads them must find what they name.
        pins.keep(store, workspace, session).await?;
        let (engine, actor) = (self.clone(), actor.clone());
        self.whole(async move { engine.send(workspace, session, &inputs, &actor).await })
            .await
    }

    async fn send(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        inputs: &[Input],
        actor: &Actor,
    ) -> Result<Sent, AppendError> {
        let inner = &self.inner;
        let claim = (inner.room() > 0).then_some(inner.server);
        let expected = inner.runners.expect(session);
        let mut accepted = Accepted::default();
        fail::point("before_input_commit");
        let appended = inner
            .store
            .append(
                session,
                Guard::Client {
                    workspace,
                    cold: true,
                },
                actor,
                |head| {
                    if head.archived {
                        return Err(ApiError::invalid(format!(
                            "Cannot send events to archived session: {session}"
                        )));
                    }
                    let mut new_id = EventId::new;
                    let machine = state(head)?;
                    let worked = works(&machine);
                    // A lease is held only while there is work.
                    let driven = head.owner.is_some() && worked;
                    let mut step = Step::new(machine, head.last_seq, head.now, &mut new_id);
                    step.accept(session, inputs)?;
                    let works = works(&step.machine);
                    // A sandbox that lives elsewhere is left to the servers there.
                    let elsewhere = head
                        .backend
                        .as_deref()
                        .is_some_and(|backend| backend != inner.sandboxes.backend_name());
                    let lease = match claim {
                        Some(server) if works && !driven && !elsewhere => {
                            LeaseChange::Claim(server)
                        }
                        _ => LeaseChange::Keep,
                    };
                    // What another server left in the middle is for a runner to look at first, and MCP
                    // servers have to be asked what they can do.
                    let waits = worked
                        || head.equipped
                        || head.cold.as_ref().is_some_and(|cold| uses_mcp(&cold.agent));
                    let begun = if lease == LeaseChange::Keep || waits {
                        Vec::new()
                    } else {
                        begin(&mut step, |_| true)
                    };
                    let (machine, written) = step.finish();
                    accepted = Accepted {
                        begun,
                        claimed: matches!(lease, LeaseChange::Claim(_)),
                        driven,
                        works,
                        machine: Some(machine.clone()),
                        agent: head.cold.as_ref().map(|cold| cold.agent.clone()),
                        environment: head.environment.clone(),
                        equipped: head.equipped,
                    };
                    Ok(Some(Change {
                        accepted: true,
                        ..change(&machine, written, head.now, lease)
                    }))
                },
            )
            .await?;
        fail::point("after_input_commit");
        let primary = accepted.machine.as_ref().map(|m| m.primary().id);
        let (Some(appended), Some(primary)) = (appended, primary) else {
            return Err(ApiError::internal().into());
        };
        inner.published(session, &appended.rows);
        self.follow_up(session, &appended, accepted, expected);
        Ok(Sent {
            primary,
            rows: created_rows(appended.rows),
        })
    }

    /// Sees to it that somebody drives a session that has work.
    fn follow_up(
        &self,
        session: SessionId,
        appended: &Appended,
        accepted: Accepted,
        expected: Expected,
    ) {
        let inner = &self.inner;
        let last_seq = appended.rows.last().map_or(0, |row| row.seq);
        if accepted.claimed {
            let spec = accepted
                .agent
                .zip(accepted.environment)
                .and_then(|(agent, place)| Spec::read(&agent, &place, &inner.models).ok());
            if let (Some(machine), Some(spec)) = (accepted.machine, spec) {
                let start = Start {
                    session,
                    epoch: appended.epoch,
                    machine,
                    last_seq,
                    spec: Arc::new(spec),
                    equipped: accepted.equipped,
                    unclean: appended.unclean,
                    begun: accepted.begun,
                    rows: appended.rows.clone(),
                };
                inner.drive(start, Some(expected));
                return;
            }
            tracing::error!(%session, "a stored agent cannot be read");
            // Nothing can be done here; the lease must not stay taken.
            let (inner, epoch) = (Arc::clone(inner), appended.epoch);
            inner.clone().tasks.spawn(async move {
                inner.give_up(session, epoch, UNREADABLE_PAUSE).await;
            });
        } else if accepted.driven {
            inner.runners.poke(session);
        } else if accepted.works {
            inner.claims.notify_one();
            inner.notifier.wake(session, last_seq);
        }
    }

    /// Changes what clients edit. `edit` sees the present values and answers the new ones, or `None`
    /// when nothing changes.
    ///
    /// # Errors
    /// What `edit` refuses.
    pub async fn session_edit(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        actor: &Actor,
        edit: impl FnOnce(&Cold, Status) -> Result<Option<SessionEdit>, ApiError> + Send + 'static,
    ) -> Result<(), AppendError> {
        let (engine, actor) = (self.clone(), actor.clone());
        self.whole(async move { engine.edit(workspace, session, &actor, edit).await })
            .await
    }

    async fn edit(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        actor: &Actor,
        edit: impl FnOnce(&Cold, Status) -> Result<Option<SessionEdit>, ApiError> + Send,
    ) -> Result<(), AppendError> {
        let inner = &self.inner;
        let appended = inner
            .store
            .append(session, Guard::Client { workspace, cold: true }, actor, |head| {
                let machine = state(head)?;
                if head.archived || machine.status == Status::Terminated {
                    return Err(ApiError::invalid(format!(
                        "Cannot update session {session}: it is archived or terminated and can only \
                         be read or deleted"
                    )));
                }
                let cold = head.cold.as_ref().ok_or_else(ApiError::internal)?;
                let Some(edit) = edit(cold, machine.status)? else { return Ok(None) };
                let mut new_id = EventId::new;
                let mut step = Step::new(machine, head.last_seq, head.now, &mut new_id);
                step.updated(edit.changed);
                let (machine, written) = step.finish();
                Ok(Some(Change {
                    touched: true,
                    cold: Some(Cold {
                        title: edit.title,
                        metadata: edit.metadata,
                        agent: edit.agent,
                    }),
                    ..change(&machine, written, head.now, LeaseChange::Keep)
                }))
            })
            .await?;
        if let Some(appended) = appended {
            inner.published(session, &appended.rows);
            inner.runners.poke(session);
        }
        Ok(())
    }

    /// Archives a session; archiving an archived one changes nothing.
    ///
    /// # Errors
    /// 400 while it works.
    pub async fn session_archive(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        actor: &Actor,
    ) -> Result<(), AppendError> {
        let (engine, actor) = (self.clone(), actor.clone());
        self.whole(async move { engine.end(workspace, session, &actor, End::Archive).await })
            .await
    }

    /// Archives one thread of a session; one that is over already stays as it is.
    ///
    /// # Errors
    /// 400 for the primary thread, and while the thread works.
    pub async fn thread_archive(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        thread: ThreadId,
        actor: &Actor,
    ) -> Result<(), AppendError> {
        let guard = Guard::Client {
            workspace,
            cold: false,
        };
        let decide = |head: &Head| {
            let mut new_id = EventId::new;
            let mut step = Step::new(state(head)?, head.last_seq, head.now, &mut new_id);
            if !step.archive_thread(thread)? {
                return Ok(None);
            }
            let (machine, written) = step.finish();
            let mut change = change(&machine, written, head.now, LeaseChange::Keep);
            for ended in change.threads.iter_mut().filter(|t| t.id == thread) {
                ended.archived = true;
            }
            Ok(Some(change))
        };
        let appended = self.inner.store.append(session, guard, actor, decide);
        if let Some(appended) = appended.await? {
            self.inner.published(session, &appended.rows);
            self.inner.runners.poke(session);
        }
        Ok(())
    }

    /// Deletes a session: gone for clients at once.
    ///
    /// # Errors
    /// 400 while it works.
    pub async fn session_delete(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        actor: &Actor,
    ) -> Result<(), AppendError> {
        let (engine, actor) = (self.clone(), actor.clone());
        self.whole(async move {
            engine.end(workspace, session, &actor, End::Delete).await?;
            engine.inner.hub.deleted(session);
            engine.inner.notifier.deleted(session);
            Ok(())
        })
        .await
    }

    async fn end(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        actor: &Actor,
        end: End,
    ) -> Result<(), AppendError> {
        let inner = &self.inner;
        let appended = inner
            .store
            .append(
                session,
                Guard::Client {
                    workspace,
                    cold: false,
                },
                actor,
                |head| {
                    if head.archived && end == End::Archive {
                        return Ok(None);
                    }
                    let mut new_id = EventId::new;
                    let mut step = Step::new(state(head)?, head.last_seq, head.now, &mut new_id);
                    step.terminate(match end {
                        End::Archive => "archive",
                        End::Delete => "delete",
                    })?;
                    let (machine, written) = step.finish();
                    let lease = LeaseChange::Release { unclean: false };
                    let mut change = Change {
                        touched: true,
                        end: Some(end),
                        ..change(&machine, written, head.now, lease)
                    };
                    if end == End::Delete {
                        // Its streams end with `session.deleted`, which is never stored.
                        change.events.clear();
                    }
                    Ok(Some(change))
                },
            )
            .await?;
        if let Some(appended) = appended {
            inner.published(session, &appended.rows);
            inner.sandboxes.release(session);
            inner.mcp.release(inner, session);
        }
        Ok(())
    }

    /// Begins to watch a session, from `after` (a position the client has seen), or from the events of
    /// a request that was accepted within `replay` before now, or from now on.
    ///
    /// # Errors
    /// [`AppendError::NotFound`], and a position that the log has not reached.
    pub async fn watch(
        &self,
        workspace: WorkspaceId,
        session: SessionId,
        after: Option<i64>,
        replay: std::time::Duration,
        previews: bool,
    ) -> Result<Watch, AppendError> {
        let inner = &self.inner;
        // Registered first, position read second: nothing in between is missed.
        let mut subscription = inner.hub.subscribe(session, previews);
        let position = inner
            .store
            .session_position(workspace, session, replay)
            .await?
            .ok_or(AppendError::NotFound)?;
        if after.is_some_and(|seq| seq < 0 || seq > position.last_seq) {
            return Err(ApiError::invalid(
                "Last-Event-ID: this session's log has no such position; open the stream without it \
                 and list the events instead",
            )
            .into());
        }
        if position.terminated && after.is_none_or(|seq| seq >= position.last_seq) {
            let query = EventQuery {
                session,
                thread: None,
                order: Order::Desc,
                types: vec![EventType::SessionStatusTerminated],
                after: None,
                before: None,
                cursor: selfsame_store::EventCursor::default(),
                limit: 1,
            };
            let page = inner.store.event_list(&query).await?;
            return Ok(Watch::Over(page.rows.into_iter().next()));
        }
        if previews {
            // Said before the client hears that its stream is open, so that what it posts next, to
            // whichever server, finds us interested.
            inner.notifier.interested(session);
            inner.notifier.flush().await;
        }
        let from = after.or(position.accepted_seq).unwrap_or(position.last_seq);
        subscription.start(from, position.last_seq);
        Ok(Watch::Live {
            subscription,
            primary: position.primary_thread,
        })
    }
}

/// The uploaded file that a resource names.
fn file_id(resource: &NewResource) -> Option<FileId> {
    match resource {
        NewResource::File(file) => Some(file.file_id),
        NewResource::Repository(_) => None,
    }
}

/// What a refused resource of a new session means for the client.
fn refused(files: &[Option<FileId>], error: AddError) -> AppendError {
    let at = match &error {
        AddError::NoFile(id) => files.iter().position(|file| *file == Some(*id)),
        _ => None,
    };
    let at = at.map_or_else(
        || "resources".to_owned(),
        |index| format!("resources[{index}]"),
    );
    match resources::refusal(&at, error) {
        ResourceError::Refused(error) => AppendError::Refused(error),
        ResourceError::Store(error) => AppendError::Store(error),
        ResourceError::NoSession | ResourceError::NoResource => AppendError::NotFound,
    }
}

impl Inner {
    /// Brings a connected sandbox up to date with its session's resources, in the background.
    pub(crate) fn reequip(self: &Arc<Self>, session: SessionId) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            if let Err(error) = inner.sandboxes.reequip(session).await {
                tracing::warn!(%session, %error, "cannot bring a sandbox up to date yet");
            }
        });
        self.runners.poke(session);
    }

    /// Makes a session's sandbox in the background, so that the first call finds it ready.
    fn provision(self: &Arc<Self>, session: SessionId) {
        let inner = Arc::clone(self);
        self.tasks.spawn(async move {
            tokio::select! {
                made = inner.sandboxes.acquire(session, 0) => {
                    if let Err(error) = made {
                        // The first call tries again and tells the model.
                        tracing::warn!(%session, %error, "cannot provision a sandbox yet");
                    }
                }
                () = inner.shutdown.cancelled() => {}
            }
        });
    }
}

/// What the decision of [`Engine::session_send`] found.
#[derive(Debug, Default)]
struct Accepted {
    claimed: bool,
    driven: bool,
    works: bool,
    machine: Option<Machine>,
    agent: Option<String>,
    environment: Option<String>,
    equipped: bool,
    begun: Vec<Begun>,
}

fn state(head: &Head) -> Result<Machine, ApiError> {
    serde_json::from_str(&head.machine).map_err(|error| {
        tracing::error!(session = %head.session, %error, "the saved state cannot be read back");
        ApiError::internal()
    })
}

/// The rows that answer a request: what the client sent, each once, in its first form.
fn created_rows(rows: Vec<Row>) -> Vec<Row> {
    let mut seen = std::collections::HashSet::new();
    rows.into_iter()
        .filter(|row| {
            let name = row.event_type.as_str();
            (name.starts_with("user.") || name == "system.message") && seen.insert(row.id)
        })
        .collect()
}

/// Parsed events as the machine takes them.
fn inputs(events: &[InboundEvent]) -> Result<Vec<Input>, ApiError> {
    events.iter().map(input).collect()
}

fn input(event: &InboundEvent) -> Result<Input, ApiError> {
    let kind = match event {
        InboundEvent::UserMessage(_) => InputKind::Message,
        InboundEvent::SystemMessage(_) => InputKind::System,
        InboundEvent::UserInterrupt(interrupt) => InputKind::Interrupt {
            thread: interrupt.session_thread_id,
        },
        InboundEvent::UserToolConfirmation(answer) => InputKind::Confirmation {
            call: answer.tool_use_id,
            allow: answer.result == ConfirmationResult::Allow,
            deny_message: answer.deny_message.clone(),
        },
        InboundEvent::UserCustomToolResult(answer) => InputKind::CustomResult {
            call: answer.custom_tool_use_id,
        },
        InboundEvent::UserToolResult(_) => {
            return Err(ApiError::invalid(
                "user.tool_result: only sessions on a `self_hosted` environment take it",
            ));
        }
        InboundEvent::UserDefineOutcome(outcome) => return outcomes::input(outcome),
    };
    Ok(Input {
        kind,
        fields: event.fields().unwrap_or_default(),
    })
}
