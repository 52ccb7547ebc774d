//! Steps become a response: what to write, where to wait, where to break.

use std::{collections::VecDeque, io, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, stream};
use serde_json::json;

use crate::{
    rule::{Cut, Drip, Failure, Step, Stop},
    script::Ticket,
    wire::{End, Head, Writer},
};

/// One thing to do while a response is sent.
#[derive(Debug)]
pub(crate) enum Op {
    Bytes(Bytes),
    Gate(String),
    Delay(Duration),
    Drip(Drip),
    /// Instead of a response; the first in the list that is no wait.
    Fail(Failure),
    Break(Cut),
    BreakAfter(usize),
    Hang,
    /// The response was an error after it had begun.
    Failed,
}

/// Plans a response. `ids` makes ids for tool calls.
pub(crate) fn plan(
    steps: &[Step],
    mut head: Head,
    streaming: bool,
    ids: impl Fn() -> String,
) -> VecDeque<Op> {
    for step in steps {
        if let Step::Usage(usage) = step {
            head.usage.extend(usage.clone());
        }
    }
    let mut plan = Plan {
        ops: VecDeque::new(),
        writer: Writer::new(head),
        streaming,
        started: false,
        end: End::default(),
    };
    let mut open = true;
    for step in steps {
        open = plan.step(step, &ids);
        if !open {
            break;
        }
    }
    if open {
        plan.finish();
    }
    plan.ops
}

struct Plan {
    ops: VecDeque<Op>,
    writer: Writer,
    streaming: bool,
    started: bool,
    end: End,
}

impl Plan {
    /// Whether more may follow.
    fn step(&mut self, step: &Step, ids: &impl Fn() -> String) -> bool {
        match step {
            Step::Text(chunks) => self.content().text(chunks),
            Step::Thinking(chunks) => self.content().thinking(chunks),
            Step::RedactedThinking(data) => self.content().redacted(data),
            Step::Tool(tool) => {
                let id = tool.id.clone().unwrap_or_else(ids);
                self.content().tool(tool, &id);
            }
            Step::Start(true) => drop(self.content()),
            Step::Ping(true) => self.content().ping(),
            Step::Raw(text) => self.content().out.push_str(text),
            Step::Stop(Stop::Reason(reason)) => self.end.stop_reason = Some(reason.clone()),
            Step::Stop(Stop::Full { reason, sequence }) => {
                self.end.stop_reason = Some(reason.clone());
                self.end.stop_sequence.clone_from(sequence);
            }
            Step::Refusal(refusal) => {
                self.end.stop_reason = Some("refusal".to_owned());
                self.end.stop_details = json!({
                    "type": "refusal",
                    "category": refusal.category,
                    "explanation": refusal.explanation,
                });
            }
            Step::Gate(name) => self.op(Op::Gate(name.clone())),
            Step::DelayMs(ms) => self.op(Op::Delay(Duration::from_millis(*ms))),
            Step::Drip(drip) => self.op(Op::Drip(*drip)),
            Step::CutAfterBytes(bytes) => self.op(Op::BreakAfter(*bytes)),
            Step::Error(failure) => {
                if self.streaming && self.started {
                    self.writer.error(failure);
                    self.op(Op::Failed);
                } else {
                    self.ops.push_back(Op::Fail(failure.clone()));
                }
                return false;
            }
            Step::Cut(cut) => {
                self.flush_part();
                self.op(Op::Break(*cut));
                return false;
            }
            Step::Hang(true) => {
                self.flush_part();
                self.op(Op::Hang);
                return false;
            }
            Step::Usage(_) | Step::Start(false) | Step::Ping(false) | Step::Hang(false) => {}
        }
        true
    }

    fn content(&mut self) -> &mut Writer {
        if !std::mem::replace(&mut self.started, true) {
            self.writer.start();
        }
        &mut self.writer
    }

    fn op(&mut self, op: Op) {
        self.flush();
        self.ops.push_back(op);
    }

    fn flush(&mut self) {
        if self.streaming && !self.writer.out.is_empty() {
            let out = std::mem::take(&mut self.writer.out);
            self.ops.push_back(Op::Bytes(out.into()));
        }
    }

    /// A plain response that breaks has sent half of itself; one that hangs before any content has
    /// sent nothing.
    fn flush_part(&mut self) {
        if !self.streaming && self.started {
            let mut whole = self.writer.whole(&self.end).to_string().into_bytes();
            whole.truncate(whole.len() / 2);
            self.ops.push_back(Op::Bytes(whole.into()));
        }
    }

    fn finish(&mut self) {
        self.content();
        self.writer.end(&self.end);
        self.flush();
        if !self.streaming {
            let whole = self.writer.whole(&self.end).to_string();
            self.ops.push_back(Op::Bytes(whole.into()));
        }
    }
}

/// Waits as the plan says before the response may begin; an error that shall be answered instead.
pub(crate) async fn begin(ops: &mut VecDeque<Op>, ticket: &Ticket) -> Result<(), Failure> {
    loop {
        match ops.pop_front() {
            Some(Op::Gate(name)) => ticket.script().gates().get(&name).pass().await,
            Some(Op::Delay(time)) => tokio::time::sleep(time).await,
            Some(Op::Hang) => std::future::pending().await,
            Some(Op::Fail(failure)) => return Err(failure),
            Some(settings @ (Op::Drip(_) | Op::BreakAfter(_))) => {
                // They have no effect before the first byte: look past them.
                let result = Box::pin(begin(ops, ticket)).await;
                ops.push_front(settings);
                return result;
            }
            Some(op) => {
                ops.push_front(op);
                return Ok(());
            }
            None => return Ok(()),
        }
    }
}

struct Playing {
    ops: VecDeque<Op>,
    pending: Bytes,
    drip: Option<Drip>,
    /// Bytes left until the connection breaks.
    left: Option<usize>,
    ticket: Ticket,
}

/// The body. What is sent between two waits is one piece.
pub(crate) fn body(ops: VecDeque<Op>, ticket: Ticket) -> impl Stream<Item = io::Result<Bytes>> {
    let playing = Playing {
        ops,
        pending: Bytes::new(),
        drip: None,
        left: None,
        ticket,
    };
    stream::unfold(playing, |mut playing| async move {
        let item = playing.next().await?;
        Some((item, playing))
    })
}

impl Playing {
    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            if self.left == Some(0) {
                return self.abort().await;
            }
            if !self.pending.is_empty() {
                return Some(Ok(self.piece().await));
            }
            match self.ops.pop_front() {
                None => {
                    self.ticket.end("sent");
                    return None;
                }
                Some(Op::Bytes(bytes)) => self.pending = bytes,
                Some(Op::Gate(name)) => self.ticket.script().gates().get(&name).pass().await,
                Some(Op::Delay(time)) => tokio::time::sleep(time).await,
                Some(Op::Drip(drip)) => self.drip = Some(drip),
                Some(Op::BreakAfter(bytes)) => self.left = Some(bytes),
                Some(Op::Break(Cut::Abort)) => return self.abort().await,
                Some(Op::Break(Cut::End)) => {
                    self.ticket.end("cut");
                    return None;
                }
                Some(Op::Failed | Op::Fail(_)) => {
                    self.ticket.end("error");
                    return None;
                }
                Some(Op::Hang) => std::future::pending().await,
            }
        }
    }

    async fn piece(&mut self) -> Bytes {
        let mut n = self.pending.len().min(self.left.unwrap_or(usize::MAX));
        if let Some(drip) = self.drip {
            tokio::time::sleep(Duration::from_millis(drip.every_ms)).await;
            n = n.min(drip.bytes.max(1));
        }
        if let Some(left) = &mut self.left {
            *left -= n;
        }
        self.pending.split_to(n)
    }

    async fn abort(&mut self) -> Option<io::Result<Bytes>> {
        self.ticket.end("cut");
        // Lets the server write out what it holds before it learns that the rest never comes.
        tokio::task::yield_now().await;
        Some(Err(io::Error::other("cut by the script")))
    }
}
