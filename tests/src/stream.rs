//! An event stream as the wire has it, read in the background.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Result, bail};
use futures_util::StreamExt as _;
use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout_at},
};

use crate::{client::shape, world::DEADLINE};

/// One event: the `id:` line and the data.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// When the last byte of it came, since the epoch.
    pub received: Duration,
    pub position: Option<String>,
    pub event: Value,
}

impl Record {
    /// The id of the event and whether this is its processed form.
    pub fn form(&self) -> (String, bool) {
        let id = self.event["id"].as_str().unwrap_or_default().to_owned();
        (id, !self.event["processed_at"].is_null())
    }
}

#[derive(Default)]
struct Seen {
    records: Vec<Record>,
    ended: bool,
}

/// Closed when dropped.
pub struct Stream {
    seen: Arc<watch::Sender<Seen>>,
    task: JoinHandle<()>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Stream {
    pub fn read(response: reqwest::Response) -> Self {
        let seen = Arc::new(watch::Sender::new(Seen::default()));
        let writer = seen.clone();
        let task = tokio::spawn(async move {
            let mut body = response.bytes_stream();
            let mut buffer = Vec::new();
            while let Some(Ok(bytes)) = body.next().await {
                buffer.extend_from_slice(&bytes);
                while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                    let block: Vec<u8> = buffer.drain(..end + 2).collect();
                    if let Some(record) = parse(&String::from_utf8_lossy(&block)) {
                        writer.send_modify(|seen| seen.records.push(record));
                    }
                }
            }
            writer.send_modify(|seen| seen.ended = true);
        });
        Self { seen, task }
    }

    pub fn records(&self) -> Vec<Record> {
        self.seen.borrow().records.clone()
    }

    pub fn events(&self) -> Vec<Value> {
        self.records()
            .into_iter()
            .map(|record| record.event)
            .collect()
    }

    /// Waits for the first record that fits.
    pub async fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Record> {
        let deadline = Instant::now() + DEADLINE;
        let mut changes = self.seen.subscribe();
        loop {
            {
                let seen = changes.borrow_and_update();
                if let Some(record) = seen.records.iter().find(|record| wanted(&record.event)) {
                    return Ok(record.clone());
                }
                if seen.ended {
                    bail!(
                        "the stream ended without {what}: {:?}",
                        shape(&self.events())
                    );
                }
            }
            if timeout_at(deadline, changes.changed()).await.is_err() {
                bail!("the stream never had {what}: {:?}", shape(&self.events()));
            }
        }
    }

    pub async fn wait_type(&self, name: &str) -> Result<Record> {
        self.wait(name, |event| event["type"] == name).await
    }

    pub async fn wait_idle(&self, reason: &str) -> Result<Record> {
        self.wait(reason, |event| {
            event["type"] == "session.status_idle" && event["stop_reason"]["type"] == reason
        })
        .await
    }

    /// Waits until the connection is gone, and returns all it brought.
    pub async fn end(self) -> Result<Vec<Record>> {
        let mut changes = self.seen.subscribe();
        let ended = changes.wait_for(|seen| seen.ended);
        if timeout_at(Instant::now() + DEADLINE, ended).await.is_err() {
            bail!("the stream does not end: {:?}", shape(&self.events()));
        }
        Ok(self.records())
    }
}

fn parse(block: &str) -> Option<Record> {
    let field = |name: &str| {
        let mut lines = block.lines().filter_map(|line| line.strip_prefix(name));
        lines
            .next()
            .map(|rest| rest.trim_start_matches(' ').to_owned())
    };
    let event = serde_json::from_str(&field("data:")?).ok()?;
    let received = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Some(Record {
        received,
        position: field("id:"),
        event,
    })
}
