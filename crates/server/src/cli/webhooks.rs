//! `selfsame webhooks`

use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use secrecy::ExposeSecret as _;
use selfsame_engine::webhooks::{UrlRules, new_secret};
use selfsame_store::{
    Actor, DeliveryFilter, EndpointPage, EndpointStart, NewSecret, Store, WebhookOwner,
};
use selfsame_types::{
    Order, Timestamp, WebhookEndpointId, WebhookEventId, WorkspaceId,
    webhook::{
        CreateWebhookEndpoint, UpdateWebhookEndpoint, WebhookDelivery, WebhookDeliveryStatus,
        WebhookEndpointState, WebhookEvent, WebhookEventType, WorkspaceWebhookEndpoint,
    },
};

use super::{
    Context,
    database::{Database, make_data_dir},
    keys::find,
};
use crate::{assembly, config::Config};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Id or name of the workspace
    #[arg(long, global = true, default_value = "default")]
    workspace: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Makes an endpoint and prints its id and, this once, its signing secret
    Create {
        /// Where deliveries are sent
        url: String,
        /// What to send, as `session.status_idled`; several times, or separated by commas
        #[arg(long = "event", required = true, value_delimiter = ',', value_parser = event)]
        events: Vec<WebhookEventType>,
        #[arg(long, default_value = "")]
        name: String,
        #[arg(long, default_value = "")]
        description: String,
    },
    /// Lists endpoints, newest first
    List,
    /// Changes what is given of an endpoint
    Update {
        id: WebhookEndpointId,
        #[arg(long)]
        url: Option<String>,
        /// Replaces the whole list
        #[arg(long = "event", value_delimiter = ',', value_parser = event)]
        events: Vec<WebhookEventType>,
        #[arg(long)]
        name: Option<String>,
        #[arg(long)]
        description: Option<String>,
    },
    /// Lets an endpoint receive again, from now on
    Enable { id: WebhookEndpointId },
    /// Sends an endpoint nothing more, and forgets what waits for it
    Disable { id: WebhookEndpointId },
    /// Deletes an endpoint and the log of its deliveries
    Delete { id: WebhookEndpointId },
    /// Makes a new signing secret and prints it, this once
    RotateSecret {
        id: WebhookEndpointId,
        /// For how long the old one goes on signing, too (`webhooks.secret_overlap_seconds`)
        #[arg(long, value_name = "SECONDS")]
        overlap: Option<u32>,
    },
    /// Sends an event that has not happened
    Test {
        id: WebhookEndpointId,
        /// One of the endpoint's own; its first one when absent
        #[arg(long, value_parser = event)]
        event: Option<WebhookEventType>,
    },
    /// Lists the latest deliveries to an endpoint
    Deliveries {
        id: WebhookEndpointId,
        /// Only those in this state
        #[arg(long, value_enum)]
        status: Option<StatusName>,
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Begins deliveries anew: one, or those that failed or were canceled since a time
    Redeliver {
        id: WebhookEndpointId,
        /// As listed (`whe_01...`)
        #[arg(long, conflicts_with = "since", required_unless_present = "since")]
        event: Option<WebhookEventId>,
        /// RFC 3339, as in 2026-01-31T12:00:00Z
        #[arg(long)]
        since: Option<Timestamp>,
    },
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StatusName {
    Pending,
    Delivered,
    Failed,
    Canceled,
}

impl From<StatusName> for WebhookDeliveryStatus {
    fn from(name: StatusName) -> Self {
        match name {
            StatusName::Pending => Self::Pending,
            StatusName::Delivered => Self::Delivered,
            StatusName::Failed => Self::Failed,
            StatusName::Canceled => Self::Canceled,
        }
    }
}

fn event(text: &str) -> Result<WebhookEventType, String> {
    WebhookEventType::parse(text).ok_or_else(|| {
        let known: Vec<_> = WebhookEventType::of(false).map(|e| e.as_str()).collect();
        format!("there are {}", known.join(", "))
    })
}

pub(super) async fn run(context: Context, arguments: Arguments) -> anyhow::Result<()> {
    let data_dir = &context.config.data_dir;
    make_data_dir(data_dir)?;
    let database = Database::visit(&context).await?;
    let done = match database.bootstrap(data_dir, &context).await {
        Ok(_) => prepare(&context.config, database.store.clone(), arguments).await,
        Err(error) => Err(error),
    };
    database.close().await;
    print!("{}", done?);
    Ok(())
}

async fn prepare(config: &Config, store: Store, arguments: Arguments) -> anyhow::Result<String> {
    let store = crate::master_key::unlock(config, store).await?;
    let workspace = find(&store, &arguments.workspace)
        .await?
        .with_context(|| format!("there is no workspace {}", arguments.workspace))?;
    let overlap = Duration::from_secs(config.webhooks.secret_overlap_seconds.into());
    let desk = Desk {
        rules: assembly::webhook_rules(config)?,
        workspace: workspace.id,
        owner: WebhookOwner::Workspace(workspace.id),
        actor: Actor::default(),
        overlap,
        store,
    };
    desk.execute(arguments.command).await
}

/// What all commands work with.
struct Desk {
    store: Store,
    rules: UrlRules,
    workspace: WorkspaceId,
    owner: WebhookOwner,
    actor: Actor,
    overlap: Duration,
}

impl Desk {
    /// Does it, and answers what to print.
    async fn execute(&self, command: Command) -> anyhow::Result<String> {
        let store = &self.store;
        match command {
            Command::Create {
                url,
                events,
                name,
                description,
            } => {
                let body = CreateWebhookEndpoint {
                    url,
                    enabled_events: events,
                    name: Some(name),
                    description: Some(description),
                };
                let spec = body.resolve(false)?;
                self.rules.check(&spec.url)?;
                let secret = new_secret();
                let made = store
                    .webhook_endpoint_create(self.owner, &spec, &secret, &self.actor)
                    .await?;
                Ok(format!(
                    "{}\n{}\n",
                    made.endpoint.id,
                    secret.expose_secret()
                ))
            }
            Command::List => {
                let page = EndpointPage {
                    order: Order::Desc,
                    start: EndpointStart::First,
                    limit: usize::MAX,
                };
                let rows = store.webhook_endpoint_list(self.owner, page).await?;
                Ok(table(&rows))
            }
            Command::Update {
                id,
                url,
                events,
                name,
                description,
            } => {
                let body = UpdateWebhookEndpoint {
                    url,
                    enabled_events: Some(events),
                    name,
                    description,
                    state: None,
                };
                self.update(id, &body).await
            }
            Command::Enable { id } => self.turn(id, WebhookEndpointState::Enabled).await,
            Command::Disable { id } => self.turn(id, WebhookEndpointState::Disabled).await,
            Command::Delete { id } => {
                if !store
                    .webhook_endpoint_delete(self.owner, id, &self.actor)
                    .await?
                {
                    anyhow::bail!("there is no webhook endpoint {id}");
                }
                Ok(format!("deleted {id}\n"))
            }
            Command::RotateSecret { id, overlap } => {
                let seconds = |seconds: u32| Duration::from_secs(seconds.into());
                let new = NewSecret {
                    secret: new_secret(),
                    overlap: overlap.map_or(self.overlap, seconds),
                };
                let until = store
                    .webhook_secret_rotate(self.owner, id, &new, &self.actor)
                    .await?
                    .with_context(|| format!("there is no webhook endpoint {id}"))?;
                if let Some(until) = until {
                    eprintln!("the old secret goes on signing until {until}");
                }
                Ok(format!("{}\n", new.secret.expose_secret()))
            }
            Command::Test { id, event } => {
                let endpoint = self.enabled(id).await?.endpoint;
                let chosen = event.or_else(|| endpoint.enabled_events.first().copied());
                let event = chosen
                    .filter(|event| endpoint.enabled_events.contains(event))
                    .context("the endpoint is not subscribed to this event")?;
                let sent = store
                    .webhook_send_test(self.workspace, id, &WebhookEvent::sample(event))
                    .await?
                    .context("the endpoint is disabled")?;
                Ok(format!("{}\n", sent.id))
            }
            Command::Deliveries { id, status, limit } => {
                let filter = DeliveryFilter {
                    statuses: status.into_iter().map(Into::into).collect(),
                    before: None,
                    limit,
                };
                let rows = store
                    .webhook_delivery_list(self.workspace, id, &filter)
                    .await?
                    .with_context(|| format!("there is no webhook endpoint {id}"))?;
                Ok(log(&rows))
            }
            Command::Redeliver { id, event, since } => {
                self.enabled(id).await?;
                if let Some(event) = event {
                    let found = store.webhook_redeliver(self.workspace, id, event).await?;
                    found.with_context(|| format!("there is no delivery {event}"))?;
                    return Ok(format!("{event} begins anew\n"));
                }
                let statuses = [
                    WebhookDeliveryStatus::Failed,
                    WebhookDeliveryStatus::Canceled,
                ];
                let since = since.context("--event or --since")?;
                let count = store
                    .webhook_redeliver_since(self.workspace, id, since, &statuses)
                    .await?;
                Ok(format!("{count} deliveries begin anew\n"))
            }
        }
    }

    async fn enabled(&self, id: WebhookEndpointId) -> anyhow::Result<WorkspaceWebhookEndpoint> {
        let found = self.store.webhook_endpoint_get(self.owner, id).await?;
        let found = found.with_context(|| format!("there is no webhook endpoint {id}"))?;
        anyhow::ensure!(
            found.endpoint.state == WebhookEndpointState::Enabled,
            "{id} is disabled: `selfsame webhooks enable {id}` first"
        );
        Ok(found)
    }

    async fn turn(
        &self,
        id: WebhookEndpointId,
        state: WebhookEndpointState,
    ) -> anyhow::Result<String> {
        let body = UpdateWebhookEndpoint {
            state: Some(state),
            ..UpdateWebhookEndpoint::default()
        };
        self.update(id, &body).await
    }

    async fn update(
        &self,
        id: WebhookEndpointId,
        body: &UpdateWebhookEndpoint,
    ) -> anyhow::Result<String> {
        let updated = self
            .store
            .webhook_endpoint_update(self.owner, id, &self.actor, |endpoint| {
                let (spec, state) = body.change(endpoint, false)?;
                if body.url.is_some() {
                    self.rules.check(&spec.url)?;
                }
                anyhow::Ok((spec, state))
            })
            .await?;
        let updated = updated.with_context(|| format!("there is no webhook endpoint {id}"))?;
        Ok(table(&[updated]))
    }
}

fn table(endpoints: &[WorkspaceWebhookEndpoint]) -> String {
    let head = ["ID", "STATE", "FAILING SINCE", "URL", "EVENTS", "NAME"];
    let mut rows = vec![head.map(str::to_owned)];
    for row in endpoints {
        let endpoint = &row.endpoint;
        let events: Vec<_> = endpoint.enabled_events.iter().map(|e| e.as_str()).collect();
        let state = match &*endpoint.disabled_reason {
            "" => endpoint.state.as_str().to_owned(),
            reason => format!("{} ({reason})", endpoint.state.as_str()),
        };
        rows.push([
            endpoint.id.to_string(),
            state,
            row.failing_since
                .map_or_else(|| "-".to_owned(), |at| at.to_string()),
            endpoint.url.clone(),
            events.join(","),
            endpoint.name.clone(),
        ]);
    }
    super::align(&rows)
}

fn log(deliveries: &[WebhookDelivery]) -> String {
    let head = ["EVENT", "TYPE", "AT", "STATUS", "ATTEMPTS", "LAST"];
    let mut rows = vec![head.map(str::to_owned)];
    for delivery in deliveries {
        let last =
            delivery
                .attempts
                .last()
                .map(|attempt| match (attempt.status_code, &attempt.error) {
                    (_, Some(error)) => error.clone(),
                    (Some(status), None) => status.to_string(),
                    (None, None) => String::new(),
                });
        rows.push([
            delivery.id.to_string(),
            delivery.event_type.as_str().to_owned(),
            delivery.created_at.to_string(),
            delivery.status.as_str().to_owned(),
            delivery.attempts.len().to_string(),
            last.unwrap_or_default(),
        ]);
    }
    super::align(&rows)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use selfsame_store::{LocalKey, Sealer};
    use sqlx::PgPool;
    use std::sync::Arc;

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    async fn run(desk: &Desk, words: &[&str]) -> anyhow::Result<String> {
        let line = Line::try_parse_from([&["webhooks"], words].concat())?;
        desk.execute(line.arguments.command).await
    }

    #[sqlx::test(migrator = "selfsame_store::MIGRATOR")]
    async fn endpoints_are_made_tested_turned_and_deleted(pool: PgPool) {
        let key = LocalKey::new([1; 32].into());
        let store = Store::from_pool(pool).with_sealer(Sealer::new(Arc::new(key)));
        let actor = Actor::default();
        let workspace = store.workspace_create("mine", &actor).await.unwrap();
        let desk = Desk {
            rules: assembly::webhook_rules(&Config::default()).unwrap(),
            workspace: workspace.id,
            owner: WebhookOwner::Workspace(workspace.id),
            actor,
            overlap: Duration::from_secs(60),
            store,
        };
        let events = "session.updated,agent.created";
        let url = "https://example.com/hook";
        assert!(
            run(&desk, &["create", url, "--event", "session.x"])
                .await
                .is_err()
        );
        assert!(
            run(&desk, &["create", "http://x.y", "--event", events])
                .await
                .is_err()
        );
        let made = run(&desk, &["create", url, "--event", events])
            .await
            .unwrap();
        let (id, secret) = made.trim().split_once('\n').unwrap();
        assert!(id.starts_with("whep_01") && secret.starts_with("whsec_"));

        let listed = run(&desk, &["list"]).await.unwrap();
        assert!(listed.contains(id) && listed.contains(events) && !listed.contains(secret));
        let event = run(&desk, &["test", id, "--event", "agent.created"])
            .await
            .unwrap();
        assert!(
            run(&desk, &["test", id, "--event", "vault.created"])
                .await
                .is_err()
        );
        let deliveries = run(&desk, &["deliveries", id, "--status", "pending"])
            .await
            .unwrap();
        assert!(deliveries.contains(event.trim()), "{deliveries}");

        let rotated = run(&desk, &["rotate-secret", id]).await.unwrap();
        assert_ne!(rotated.trim(), secret);
        let off = run(&desk, &["disable", id]).await.unwrap();
        assert!(off.contains("disabled"), "{off}");
        let redeliver = ["redeliver", id, "--since", "2020-01-01T00:00:00Z"];
        assert!(run(&desk, &redeliver).await.is_err());
        run(&desk, &["enable", id]).await.unwrap();
        let again = run(&desk, &redeliver).await.unwrap();
        assert_eq!(again, "1 deliveries begin anew\n");
        let one = run(&desk, &["redeliver", id, "--event", event.trim()]).await;
        assert!(one.unwrap().contains("begins anew"));
        let renamed = run(&desk, &["update", id, "--name", "other"])
            .await
            .unwrap();
        assert!(
            renamed.contains("other") && renamed.contains(events),
            "{renamed}"
        );
        run(&desk, &["delete", id]).await.unwrap();
        assert!(run(&desk, &["delete", id]).await.is_err());
        assert_eq!(run(&desk, &["list"]).await.unwrap().lines().count(), 1);
    }
}
