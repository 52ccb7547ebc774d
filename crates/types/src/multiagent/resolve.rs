//! From what a request says to what is saved and to what a session runs.

use std::collections::HashMap;

use super::{
    ADVISOR, Advisor, AdvisorEnabled, AdvisorSetting, AdvisorSettingParams, AgentReference,
    COORDINATION_TOOLS, Coordinator, CoordinatorType, Delegation, DelegationEnabled,
    DelegationParams, Disabled, EnabledType, Multiagent, Multiagent20261001,
    Multiagent20261001Params, Multiagent20261001Type, MultiagentParams, RosterEntry,
    RosterEntryParams, SessionCoordinator, SessionDelegation, SessionDelegationEnabled,
    SessionMultiagent, SessionMultiagent20261001, SessionRosterEntry,
};
use crate::{
    AgentId, ApiError, Patch,
    agent::{Agent, AgentSnapshot, AgentSpec, ThreadAgent},
    check,
    model::InferenceGeo,
};

/// Most agents of one list.
const MAX_AGENTS: usize = 20;

/// A saved agent, as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Reference {
    pub id: AgentId,
    /// `None`: the latest.
    pub version: Option<i64>,
}

impl From<AgentReference> for Reference {
    fn from(agent: AgentReference) -> Self {
        Self {
            id: agent.id,
            version: Some(agent.version.into()),
        }
    }
}

/// The agents of a workspace that were found for some references.
#[derive(Debug, Default)]
pub struct Members(HashMap<Reference, Agent>);

impl Members {
    #[must_use]
    pub fn new(found: impl IntoIterator<Item = (Reference, Agent)>) -> Self {
        Self(found.into_iter().collect())
    }

    fn get(&self, reference: Reference) -> Option<&Agent> {
        self.0.get(&reference)
    }

    /// A version that is pinned already, whatever it was asked for as.
    fn pinned(&self, pin: &AgentReference) -> Option<&Agent> {
        self.get((*pin).into()).or_else(|| {
            self.0
                .values()
                .find(|agent| agent.id == pin.id && agent.version == pin.version)
        })
    }
}

impl MultiagentParams {
    /// The saved agents that have to be looked up to resolve this. `own` needs no looking up.
    #[must_use]
    pub fn references(&self, own: AgentId) -> Vec<Reference> {
        let entries: Vec<RosterEntryParams> = match self {
            Self::Coordinator(coordinator) => {
                // More are refused when it is resolved.
                coordinator
                    .agents
                    .iter()
                    .take(MAX_AGENTS)
                    .cloned()
                    .collect()
            }
            Self::Multiagent20261001(settings) => [&settings.subagents, &settings.workflows]
                .into_iter()
                .filter_map(|delegation| match delegation {
                    Patch::Value(DelegationParams::Enabled(enabled)) => {
                        match &enabled.predefined_agents {
                            Patch::Value(agents) => Some(agents),
                            Patch::Absent | Patch::Null => None,
                        }
                    }
                    _ => None,
                })
                .flat_map(|agents| agents.iter().take(MAX_AGENTS).cloned().map(Into::into))
                .collect(),
        };
        let asked = entries.iter().filter_map(|entry| match entry {
            RosterEntryParams::Id(id) => Some((id, None)),
            RosterEntryParams::Agent(agent) => Some((&agent.id, agent.version)),
            RosterEntryParams::Itself(_) | RosterEntryParams::Advisor(_) => None,
        });
        asked
            .filter_map(|(id, version)| {
                let id = id.parse().ok().filter(|id| *id != own)?;
                Some(Reference { id, version })
            })
            .collect()
    }

    /// What is to be saved, when `stored` is what the agent has now.
    pub(crate) fn resolve(
        self,
        own: AgentReference,
        stored: Option<&Multiagent>,
        members: &Members,
    ) -> Result<Multiagent, ApiError> {
        let roster = Roster { own, members };
        match self {
            Self::Coordinator(params) => roster.coordinator(params.agents),
            Self::Multiagent20261001(params) => {
                let stored = match stored {
                    Some(Multiagent::Multiagent20261001(stored)) => Some(stored),
                    _ => None,
                };
                roster.settings(params, stored)
            }
        }
    }
}

/// Resolves lists of agents.
struct Roster<'a> {
    own: AgentReference,
    members: &'a Members,
}

impl Roster<'_> {
    fn coordinator(&self, entries: Vec<RosterEntryParams>) -> Result<Multiagent, ApiError> {
        const AT: &str = "multiagent.agents";
        check::count(AT, entries.len(), 1..=MAX_AGENTS)?;
        let mut agents = Vec::new();
        let mut advisor: Option<Advisor> = None;
        for (index, entry) in entries.into_iter().enumerate() {
            let at = format!("{AT}[{index}]");
            match entry {
                RosterEntryParams::Advisor(_) if advisor.is_some() => {
                    return Err(ApiError::invalid(format!(
                        "{at}: there is an advisor already; an agent has at most one"
                    )));
                }
                RosterEntryParams::Advisor(given) => {
                    check::text(format_args!("{at}.model"), &given.model, 1..=256)?;
                    advisor = Some(given);
                }
                entry => self.push(&at, entry, &mut agents)?,
            }
        }
        let agents = agents.into_iter().map(RosterEntry::Agent);
        Ok(Multiagent::Coordinator(Coordinator {
            r#type: CoordinatorType,
            agents: agents.chain(advisor.map(RosterEntry::Advisor)).collect(),
        }))
    }

    fn settings(
        &self,
        params: Multiagent20261001Params,
        stored: Option<&Multiagent20261001>,
    ) -> Result<Multiagent, ApiError> {
        let advisor = match params.advisor {
            Patch::Absent => stored.map(|stored| stored.advisor.clone()),
            Patch::Null => None,
            Patch::Value(AdvisorSettingParams::Enabled(enabled)) => {
                check::text("multiagent.advisor.model", &enabled.model, 1..=256)?;
                Some(AdvisorSetting::Enabled(AdvisorEnabled {
                    r#type: EnabledType,
                    model: enabled.model,
                }))
            }
            Patch::Value(AdvisorSettingParams::Disabled(disabled)) => {
                Some(AdvisorSetting::Disabled(disabled))
            }
        };
        Ok(Multiagent::Multiagent20261001(Multiagent20261001 {
            r#type: Multiagent20261001Type,
            advisor: advisor.unwrap_or_else(|| AdvisorSetting::Disabled(Disabled::default())),
            subagents: self.delegation(
                "multiagent.subagents",
                params.subagents,
                stored.map(|stored| &stored.subagents),
            )?,
            workflows: self.delegation(
                "multiagent.workflows",
                params.workflows,
                stored.map(|stored| &stored.workflows),
            )?,
        }))
    }

    fn delegation(
        &self,
        at: &str,
        params: Patch<DelegationParams>,
        stored: Option<&Delegation>,
    ) -> Result<Delegation, ApiError> {
        let params = match params {
            Patch::Absent => {
                return Ok(stored
                    .cloned()
                    .unwrap_or_else(|| Delegation::Enabled(DelegationEnabled::default())));
            }
            Patch::Null => return Ok(Delegation::Enabled(DelegationEnabled::default())),
            Patch::Value(DelegationParams::Disabled(disabled)) => {
                return Ok(Delegation::Disabled(disabled));
            }
            Patch::Value(DelegationParams::Enabled(enabled)) => enabled,
        };
        let mut merged = match stored {
            Some(Delegation::Enabled(stored)) => stored.clone(),
            _ => DelegationEnabled::default(),
        };
        match params.inline_agents {
            Patch::Absent => {}
            Patch::Null => merged.inline_agents = super::Switch::default(),
            Patch::Value(switch) => merged.inline_agents = switch.into(),
        }
        match params.predefined_agents {
            Patch::Absent => {}
            Patch::Null => merged.predefined_agents.clear(),
            Patch::Value(entries) => {
                let list = format!("{at}.predefined_agents");
                check::count(&list, entries.len(), 0..=MAX_AGENTS)?;
                merged.predefined_agents.clear();
                for (index, entry) in entries.into_iter().enumerate() {
                    let at = format!("{list}[{index}]");
                    self.push(&at, entry.into(), &mut merged.predefined_agents)?;
                }
            }
        }
        if !merged.inline_agents.is_enabled() && merged.predefined_agents.is_empty() {
            return Err(ApiError::invalid(format!(
                "{at}: with `inline_agents` disabled, `predefined_agents` must name at least one \
                 agent; name one, enable `inline_agents`, or disable `{}`",
                at.trim_start_matches("multiagent.")
            )));
        }
        Ok(Delegation::Enabled(merged))
    }

    /// Adds one agent to a list of different ones.
    fn push(
        &self,
        at: &str,
        entry: RosterEntryParams,
        agents: &mut Vec<AgentReference>,
    ) -> Result<(), ApiError> {
        let agent = match entry {
            RosterEntryParams::Itself(_) => self.own,
            RosterEntryParams::Id(id) => self.pin(at, &id, None)?,
            RosterEntryParams::Agent(agent) => self.pin(at, &agent.id, agent.version)?,
            RosterEntryParams::Advisor(_) => {
                return Err(ApiError::invalid(format!("{at}: cannot be an advisor")));
            }
        };
        if agents.iter().any(|other| other.id == agent.id) {
            let what = if agent.id == self.own.id {
                "the agent itself".to_owned()
            } else {
                format!("agent `{}`", agent.id)
            };
            return Err(ApiError::invalid(format!(
                "{at}: {what} is listed already; list each agent once"
            )));
        }
        agents.push(agent);
        Ok(())
    }

    fn pin(&self, at: &str, id: &str, version: Option<i64>) -> Result<AgentReference, ApiError> {
        check::text(format_args!("{at}.id"), id, 1..=128)?;
        if version.is_some_and(|version| version < 1) {
            return Err(ApiError::invalid(format!(
                "{at}.version: must be 1 or greater"
            )));
        }
        let parsed: Option<AgentId> = id.parse().ok();
        // So an agent's own answer can be sent back: there, it is listed under its id.
        if parsed == Some(self.own.id) {
            return Ok(self.own);
        }
        let found = parsed.and_then(|id| self.members.get(Reference { id, version }));
        let Some(agent) = found else {
            let id = check::excerpt(id);
            return Err(ApiError::invalid(match version {
                None => format!("{at}: there is no agent `{id}` in this workspace"),
                Some(version) => {
                    format!("{at}: there is no agent `{id}` at version {version} in this workspace")
                }
            }));
        };
        if agent.archived_at.is_some() {
            return Err(ApiError::invalid(format!(
                "{at}: agent `{id}` is archived; name another agent"
            )));
        }
        if agent.config.multiagent.is_some() {
            return Err(ApiError::invalid(format!(
                "{at}: agent `{id}` has `multiagent` itself at version {}, and a member cannot direct \
                 further agents; name an agent or a version without",
                agent.version
            )));
        }
        Ok(AgentReference::new(agent.id, agent.version))
    }
}

// Rules that span the agent and its members ------------------------------------------------------

/// Checks an agent against the members of its `multiagent`.
pub(crate) fn check_agent(
    spec: &AgentSpec,
    multiagent: &Multiagent,
    own: AgentId,
    members: &Members,
) -> Result<(), ApiError> {
    let specs = multiagent
        .agents()
        .filter(|agent| agent.id != own)
        .filter_map(|agent| members.pinned(agent))
        .map(|agent| &agent.config.spec);
    check_specs(spec, multiagent.advisor().is_some(), specs)?;
    let names_itself = multiagent.agents().any(|agent| agent.id == own);
    if names_itself && multiagent.advisor().is_some() && spec.name == ADVISOR {
        return Err(taken_by_advisor());
    }
    Ok(())
}

/// The same for the copies inside a session.
pub(crate) fn check_session(
    spec: &AgentSpec,
    multiagent: &SessionMultiagent,
) -> Result<(), ApiError> {
    let advised = multiagent.advisor().is_some();
    let agents = multiagent.agents();
    check_specs(spec, advised, agents.iter().map(|agent| &agent.spec))
}

fn check_specs<'a>(
    spec: &AgentSpec,
    advised: bool,
    members: impl Iterator<Item = &'a AgentSpec>,
) -> Result<(), ApiError> {
    if let Some(tool) = spec
        .custom_tools()
        .find(|tool| COORDINATION_TOOLS.contains(&tool.name.as_str()))
    {
        return Err(ApiError::invalid(format!(
            "tools: `{}` is a tool that every agent with `multiagent` has; give the custom tool another \
             name",
            tool.name
        )));
    }
    let shown = |geo: Option<InferenceGeo>| match geo {
        None => "none",
        Some(InferenceGeo::Us) => "`us`",
        Some(InferenceGeo::Global) => "`global`",
    };
    for member in members {
        if advised && member.name == ADVISOR {
            return Err(taken_by_advisor());
        }
        let (own, theirs) = (spec.model.inference_geo, member.model.inference_geo);
        if own != theirs {
            return Err(ApiError::invalid(format!(
                "model.inference_geo: must be the same for the agent and all members of `multiagent`, \
                 or unset for all; the agent has {}, its member `{}` {}",
                shown(own),
                check::excerpt(&member.name),
                shown(theirs)
            )));
        }
    }
    Ok(())
}

fn taken_by_advisor() -> ApiError {
    ApiError::invalid(format!(
        "multiagent: a member is named `{ADVISOR}`, which is the advisor's name; rename that agent or \
         leave out the advisor"
    ))
}

// The copy of a session --------------------------------------------------------------------------

impl Multiagent {
    /// Whole definitions in the place of references. The agent's own self is `own`, which may have
    /// been changed for the session.
    pub(crate) fn copy(
        &self,
        own: &AgentSnapshot,
        members: &Members,
    ) -> Result<SessionMultiagent, ApiError> {
        let copy = |pin: &AgentReference| -> Result<ThreadAgent, ApiError> {
            if pin.id == own.id {
                return Ok(own.thread_agent());
            }
            let agent = members.pinned(pin).ok_or_else(|| {
                ApiError::invalid(format!(
                    "agent: its member `{}` cannot be found at version {}; update the agent's \
                     `multiagent`",
                    pin.id, pin.version
                ))
            })?;
            Ok(agent.thread_agent())
        };
        let delegation = |delegation: &Delegation| -> Result<SessionDelegation, ApiError> {
            Ok(match delegation {
                Delegation::Disabled(disabled) => SessionDelegation::Disabled(*disabled),
                Delegation::Enabled(enabled) => {
                    SessionDelegation::Enabled(SessionDelegationEnabled {
                        r#type: EnabledType,
                        inline_agents: enabled.inline_agents,
                        predefined_agents: enabled
                            .predefined_agents
                            .iter()
                            .map(copy)
                            .collect::<Result<_, _>>()?,
                    })
                }
            })
        };
        Ok(match self {
            Self::Coordinator(coordinator) => SessionMultiagent::Coordinator(SessionCoordinator {
                r#type: CoordinatorType,
                agents: coordinator
                    .agents
                    .iter()
                    .map(|entry| match entry {
                        RosterEntry::Agent(pin) => {
                            copy(pin).map(Box::new).map(SessionRosterEntry::Agent)
                        }
                        RosterEntry::Advisor(advisor) => {
                            Ok(SessionRosterEntry::Advisor(advisor.clone()))
                        }
                    })
                    .collect::<Result<_, _>>()?,
            }),
            Self::Multiagent20261001(settings) => {
                SessionMultiagent::Multiagent20261001(SessionMultiagent20261001 {
                    r#type: Multiagent20261001Type,
                    advisor: settings.advisor.clone(),
                    subagents: delegation(&settings.subagents)?,
                    workflows: delegation(&settings.workflows)?,
                })
            }
        })
    }
}
