//! `connect`: carries bytes between its standard streams and the hands' socket.
//!
//! One thread, one `poll`, plain copies (`splice` was seen to hang). It must notice at any time
//! that the hands have closed the socket, also while a client that does not read blocks it.

use std::{
    io,
    net::Shutdown,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::net::UnixStream,
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_getfl, fcntl_setfl},
    io::Errno,
    process::DumpableBehavior,
};

use super::Socket;

/// How long to wait for hands that are just starting.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// How long to go on writing after the hands have closed.
const FLUSH_TIME: Duration = Duration::from_secs(2);
const BUFFER: usize = 64 << 10;

/// One direction.
struct Flow {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// The source has nothing more.
    ended: bool,
    /// The target has been told so, or takes nothing more.
    closed: bool,
}

impl Flow {
    fn new() -> Self {
        Self {
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            ended: false,
            closed: false,
        }
    }

    fn empty(&self) -> bool {
        self.start == self.end
    }

    fn wants_input(&self) -> bool {
        self.empty() && !self.ended && !self.closed
    }

    /// Moves what can be moved now.
    fn advance(&mut self, source: BorrowedFd<'_>, target: BorrowedFd<'_>) {
        if self.wants_input() {
            match rustix::io::read(source, &mut self.buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => (self.start, self.end) = (0, length),
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => self.ended = true,
            }
        }
        while !self.empty() && !self.closed {
            match rustix::io::write(target, &self.buffer[self.start..self.end]) {
                Ok(length) => self.start += length,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.closed = true,
            }
        }
    }
}

/// Runs until both directions have ended.
pub(crate) fn relay(socket: &Socket) -> io::Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // In this order: nothing inside may get at this process while it can do more than they can.
    super::door::give_up_all()?;
    let stream = connect(socket)?;
    stream.set_nonblocking(true)?;
    let (stdin, stdout) = (io::stdin(), io::stdout());
    let (stdin, stdout, hands) = (stdin.as_fd(), stdout.as_fd(), stream.as_fd());
    for fd in [stdin, stdout] {
        fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
    }
    let (mut inward, mut outward) = (Flow::new(), Flow::new());
    let mut deadline: Option<Instant> = None;
    loop {
        inward.advance(stdin, hands);
        outward.advance(hands, stdout);
        if inward.ended && inward.empty() && !inward.closed {
            inward.closed = true;
            // The hands end the session and close, which ends the other direction.
            let _ = stream.shutdown(Shutdown::Write);
        }
        if outward.closed || (outward.ended && outward.empty()) {
            return Ok(());
        }
        let timeout = match deadline {
            None => None,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Ok(());
                }
                if outward.empty() {
                    // From a closed socket there is always something to read: bytes, or the end.
                    continue;
                }
                Timespec::try_from(left).ok()
            }
        };
        let want = |condition: bool, flags: PollFlags| {
            if condition { flags } else { PollFlags::empty() }
        };
        let from_hands = want(outward.wants_input(), PollFlags::IN)
            | want(!inward.empty() && !inward.closed, PollFlags::OUT);
        // A descriptor without wishes still reports that its other side is gone, again and again.
        // Of the socket that is news once; standard input and output are left out.
        let mut descriptors = Vec::with_capacity(3);
        if deadline.is_none() {
            descriptors.push(PollFd::from_borrowed_fd(hands, from_hands));
        }
        if inward.wants_input() {
            descriptors.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
        }
        if !outward.empty() {
            descriptors.push(PollFd::from_borrowed_fd(stdout, PollFlags::OUT));
        }
        match poll(&mut descriptors, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let gone = PollFlags::HUP | PollFlags::ERR;
        if deadline.is_none()
            && descriptors
                .iter()
                .take(1)
                .any(|fd| fd.revents().intersects(gone))
        {
            inward.closed = true;
            // What is left goes to a client that reads; one that does not is not waited for.
            deadline = Some(Instant::now() + FLUSH_TIME);
        }
    }
}

fn connect(socket: &Socket) -> io::Result<UnixStream> {
    let deadline = Instant::now() + CONNECT_TIME;
    loop {
        match socket.connect() {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}
