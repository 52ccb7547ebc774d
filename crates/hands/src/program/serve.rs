//! Listening, admitting servers, and answering them.

use std::{
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::process::{DumpableBehavior, Signal};
use selfsame_hands::{
    hello::{self, Admission},
    mux::{self, Side, Substream},
    procs::{Prey, Stat},
    wire::{self, Reply, Request},
};
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{SignalKind, signal},
    sync::{OnceCell, Semaphore},
    task::JoinSet,
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{
    Places, Socket,
    calls::Calls,
    children,
    disk::Disk,
    door::{self, Door, Prepared},
    outputs,
    places::Fault,
    run::Runs,
    tools::Tools,
    transfer::Transfers,
};

/// Time for an admission.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once that have not been admitted.
const MAX_STRANGERS: usize = 32;
/// Time for a request to arrive, once its substream is open.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Threads for file work. A tool that hangs in a file system holds one.
const FILE_THREADS: usize = 8;

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) socket: Socket,
    pub(crate) places: Places,
    /// Free bytes of the disk that nothing inside may take; 0 for none.
    pub(crate) low_water: u64,
    /// Upper limit of a command's own time limit.
    pub(crate) max_timeout: Duration,
}

#[derive(Debug)]
struct Hands {
    boot_id: Uuid,
    admission: Mutex<Admission>,
    /// Ends the newest session.
    session: Mutex<CancellationToken>,
    calls: Calls,
    transfers: Transfers,
    runs: Runs,
    places: Places,
    disk: Arc<Disk>,
    door: Door,
}

/// Serves until TERM.
pub(crate) fn serve(options: Options) -> io::Result<()> {
    // Nothing inside may read the key out of this process's memory.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let own = rustix::process::getpid();
    if !own.is_init() {
        // Orphans come to this process as they would to PID 1, and signals meant for the parent's
        // group do not. It fails for a group leader, which has its own group already.
        rustix::process::set_child_subreaper(Some(own))?;
        let _ = rustix::process::setsid();
    }
    // Before there are threads, and before anything else can run.
    let door = door::prepare()?;
    options.places.make();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(FILE_THREADS)
        .thread_keep_alive(Duration::from_secs(u64::MAX / 4))
        .thread_stack_size(1 << 20)
        .build()?;
    let result = runtime.block_on(async {
        start_file_threads().await;
        let listener = UnixListener::from_std(options.socket.listen()?)?;
        run(listener, options, door).await
    });
    // Not waited for: a file thread may hang.
    runtime.shutdown_background();
    result
}

/// At the sandbox's process limit no thread can be started any more, so all are started now.
async fn start_file_threads() {
    let gate = Arc::new(std::sync::Barrier::new(FILE_THREADS));
    let mut threads = JoinSet::new();
    for _ in 0..FILE_THREADS {
        let gate = Arc::clone(&gate);
        threads.spawn_blocking(move || gate.wait());
    }
    threads.join_all().await;
}

async fn run(listener: UnixListener, options: Options, door: Prepared) -> io::Result<()> {
    let boot_id = Uuid::now_v7();
    let (places, socket) = (options.places, options.socket);
    let disk = Arc::new(Disk::new(places.workdir(), options.low_water));
    let tools = Tools::new(places.clone(), Arc::clone(&disk), options.max_timeout);
    let hands = Arc::new(Hands {
        boot_id,
        admission: Mutex::default(),
        session: Mutex::default(),
        calls: Calls::new(tools),
        transfers: Transfers::new(places.clone(), Arc::clone(&disk)),
        runs: Runs::new(places.clone(), Arc::clone(&disk)),
        places,
        disk,
        door: Door::start(door)?,
    });
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = children::reap_for_ever() => result,
        result = accept(listener, &hands) => result,
        () = socket.abandoned() => Ok(()),
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }?;
    // With PID 1 everything inside ends. Otherwise this process's descendants would be left.
    let own = rustix::process::getpid();
    if !own.is_init() {
        for _ in 0..100 {
            if (Prey {
                group: Some(own),
                marker: None,
            })
            .signal(Signal::KILL)
                == 0
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    Ok(())
}

async fn accept(listener: UnixListener, hands: &Arc<Hands>) -> io::Result<()> {
    let strangers = Arc::new(Semaphore::new(MAX_STRANGERS));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            // Too many open files, or a peer that is gone again: neither is for ever.
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if own_descendant(&stream) {
            continue;
        }
        let Ok(permit) = Arc::clone(&strangers).try_acquire_owned() else {
            continue;
        };
        let hands = Arc::clone(hands);
        tokio::spawn(async move { session(stream, &hands, permit).await });
    }
}

/// Whether a process that the hands started is calling. A relay comes from outside: its parent is
/// no process of this namespace, and neither it nor a parent of it is a child of this process.
fn own_descendant(stream: &UnixStream) -> bool {
    let Some(mut pid) = stream.peer_cred().ok().and_then(|peer| peer.pid()) else {
        return true;
    };
    let own = rustix::process::getpid().as_raw_nonzero().get();
    // A process outside this namespace has the number 0. Bounded, because processes move.
    for _ in 0..1000 {
        if pid == 0 {
            return false;
        }
        if pid == own {
            return true;
        }
        match Stat::read(pid) {
            // PID 1 of a host on which the hands are an ordinary process has no parent either.
            Some(stat) => pid = stat.parent,
            None => return true,
        }
    }
    true
}

async fn session(
    mut stream: UnixStream,
    hands: &Arc<Hands>,
    stranger: tokio::sync::OwnedSemaphorePermit,
) {
    let end = CancellationToken::new();
    let admitted = || {
        let mut session = hands.session.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *session, end.clone()).cancel();
    };
    let hello = hello::examine(&mut stream, hands.boot_id, &hands.admission, admitted);
    if !matches!(timeout(HELLO_TIMEOUT, hello).await, Ok(Ok(()))) {
        return;
    }
    drop(stranger);
    // Held for as long as the session lasts: without it the session would end.
    let (opener, mut requests, work) = mux::session(stream, Side::Hands);
    let mut work = pin!(work);
    let _attached = hands.door.attach(&opener);
    // Dropped with this future, and so is every answer that nobody waits for any more.
    let mut answers = JoinSet::new();
    let settled = Arc::new(OnceCell::new());
    loop {
        tokio::select! {
            biased;
            () = end.cancelled() => return,
            () = &mut work => return,
            Some(_) = answers.join_next() => {}
            Some(substream) = requests.recv() => {
                let (hands, settled) = (Arc::clone(hands), Arc::clone(&settled));
                answers.spawn(async move { answer(substream, &hands, &settled).await });
            }
        }
    }
}

/// `settled` is filled when nothing of the server's own runs that an earlier session has begun.
async fn answer(mut substream: Substream, hands: &Hands, settled: &OnceCell<()>) -> io::Result<()> {
    let request = wire::read_frame(&mut substream, wire::MAX_REQUEST);
    let request = match timeout(REQUEST_TIMEOUT, request).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => return refuse(&mut substream, format!("not a request: {error}")).await,
        Err(_) => return refuse(&mut substream, "the request did not arrive in time").await,
    };
    let transfers = &hands.transfers;
    let outcome = match request {
        Request::Call(call) => Ok(hands.calls.run(call).await),
        Request::Ack { id } => {
            hands.calls.acknowledge(id);
            Ok(Reply::Done)
        }
        Request::Cancel { id } => {
            hands.calls.cancel(id);
            Ok(Reply::Done)
        }
        Request::Get { path, limit } => return transfers.get(path, limit, &mut substream).await,
        Request::Put(put) => transfers.put(put, &mut substream).await,
        Request::Walk { root, limit } => transfers.walk(root, limit).await,
        Request::Link { link, target } => transfers.link(link, target).await,
        Request::Remove { path } => transfers.remove(path).await,
        Request::Run(run) => {
            settled.get_or_init(|| hands.runs.settle()).await;
            hands.runs.run(run, &mut substream).await
        }
        Request::Outputs => {
            let outputs = outputs::fingerprint(&hands.places.outputs()).await;
            Ok(Reply::Outputs(outputs))
        }
        Request::Trust { pem } => {
            let trusted = tokio::task::spawn_blocking(move || door::trust(&pem)).await;
            match trusted {
                Ok(Ok(())) => Ok(Reply::Done),
                Ok(Err(error)) => Err(Fault(error.to_string())),
                Err(error) => Err(Fault(error.to_string())),
            }
        }
        Request::Variables { variables } => {
            super::set_variables(variables);
            Ok(Reply::Done)
        }
        Request::Disk { used, limit } => {
            hands.disk.tell(used, limit);
            Ok(Reply::Done)
        }
        Request::Door => Ok(Reply::Door(hands.door.state().clone())),
    };
    let reply = outcome.unwrap_or_else(|Fault(message)| Reply::Failed { message });
    wire::write_frame(&mut substream, &reply, wire::MAX_REPLY).await
}

async fn refuse(substream: &mut Substream, message: impl Into<String>) -> io::Result<()> {
    let message = message.into();
    wire::write_frame(substream, &Reply::Refused { message }, wire::MAX_REPLY).await
}
