//! What programs reach, and how connections end.

use std::time::Duration;

use bollard::{Docker, query_parameters::DownloadFromContainerOptionsBuilder};
use futures_util::TryStreamExt;
use selfsame_sandbox::Sandbox;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use crate::harness::{Inside, KEY, echo, inside, serve, server};

#[tokio::test]
async fn programs_reach_the_world_by_name_and_by_address() {
    inside(async |inside| {
        let echo = echo().await;
        let seen = serve(inside.sandbox.outgoing().unwrap(), move |_| Some(echo));
        assert!(inside.sandbox.outgoing().is_none());

        let said = inside
            .python(
                "
t('name', lambda: ask('Echo.Example', 80, b'by name'))
t('port', lambda: ask('echo.example', 65535, b'any port'))
t('address', lambda: ask('192.0.2.7', 8080, b'by address'))
t('mapped', lambda: ask('::ffff:192.0.2.8', 8080, b'as IPv6'))
t('own port', lambda: ask('192.0.2.9', 61080, b'the port of the hands'))
",
            )
            .await;
        assert_eq!(
            said,
            "name b'by name'\nport b'any port'\naddress b'by address'\nmapped b'as IPv6'\n\
             own port b'the port of the hands'"
        );
        assert_eq!(
            *seen.lock().unwrap(),
            [
                "echo.example:80",
                "echo.example:65535",
                "192.0.2.7:8080",
                "192.0.2.8:8080",
                "192.0.2.9:61080"
            ]
        );
    })
    .await;
}

#[tokio::test]
async fn names_have_addresses_and_what_is_local_stays_inside() {
    inside(async |inside| {
        let seen = serve(inside.sandbox.outgoing().unwrap(), |_| None);
        let address = inside
            .bash("getent ahostsv4 example.com | head -1 | cut -d' ' -f1")
            .await;
        assert!(address.starts_with("198.18."), "{address}");
        let said = inside
            .python(&format!(
                "
t('same', lambda: socket.gethostbyname('EXAMPLE.com') == '{address}')
t('other', lambda: socket.gethostbyname('www.example.com') == '{address}')
t('reverse', lambda: socket.gethostbyaddr('{address}')[0])
t('v6', lambda: socket.getaddrinfo('example.com', 80, socket.AF_INET6))
t('own', lambda: socket.gethostbyname(socket.gethostname()))
t('localhost', lambda: socket.gethostbyname('app.localhost'))
question = struct.pack('>6H', 7, 256, 1, 0, 0, 0) + b'\\7example\\3com\\0' + struct.pack('>2H', 1, 1)
def elsewhere():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        s.sendto(question, ('8.8.8.8', 53))
        answer, source = s.recvfrom(512)
    with dial('1.1.1.1', 53, struct.pack('>H', len(question)) + question) as s:
        again = s.recv(512)[2:]
    return source, answer == again, socket.inet_ntoa(answer[-4:]) == '{address}'
t('elsewhere', elsewhere)
listener = socket.create_server(('0.0.0.0', 4000))
for host in ['localhost', '127.0.0.1', '127.9.9.9', '0.0.0.0', 'sandbox', '198.18.0.1']:
    t(host, lambda: dial(host, 4000).getpeername()[1])
t('closed', lambda: dial('127.0.0.1', 4001))
t('hands', lambda: dial('127.0.0.1', 61080).recv(1))
"
            ))
            .await;
        let expected = [
            "same True",
            "other False",
            "reverse example.com",
            "v6 gaierror(-5, 'No address associated with hostname')",
            "own 127.0.0.1",
            "localhost 127.0.0.1",
            "elsewhere (('8.8.8.8', 53), True, True)",
            "localhost 4000",
            "127.0.0.1 4000",
            "127.9.9.9 4000",
            "0.0.0.0 4000",
            "sandbox 4000",
            "198.18.0.1 4000",
            "closed ECONNREFUSED",
            "hands ECONNRESET",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        assert!(seen.lock().unwrap().is_empty(), "{seen:?}");
    })
    .await;
}

#[tokio::test]
async fn directions_end_by_themselves_and_a_loss_is_a_reset() {
    inside(async |inside| {
        let echo = echo().await;
        // A part of what it has, and then a reset.
        let cut = server(async |mut stream: TcpStream| {
            stream.write_all(&[1; 1000]).await.unwrap();
            // The other side has it, so that the reset does not overtake it.
            stream.read_u8().await.unwrap();
            stream.set_zero_linger().unwrap();
        })
        .await;
        // Answers before it has read anything, and goes.
        let hasty = server(async |mut stream: TcpStream| {
            stream.write_all(b"go away").await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        })
        .await;
        let (told, mut fates) = mpsc::channel(1);
        let fate = server(move |mut stream: TcpStream| {
            let told = told.clone();
            async move {
                let end = stream.read_to_end(&mut Vec::new()).await;
                told.send(end.map_err(|error| error.kind())).await.unwrap();
            }
        })
        .await;
        serve(inside.sandbox.outgoing().unwrap(), move |host| {
            Some(match host {
                "echo.example" => echo,
                "cut.example" => cut,
                "hasty.example" => hasty,
                "fate.example" => fate,
                _ => return None,
            })
        });
        let said = inside
            .python(
                "
# The answer is longer than all buffers on the way, and comes after the end of the question.
t('half', lambda: len(ask('echo.example', 80, b'x' * 3000000)))
def cut():
    s = dial('cut.example')
    read = 0
    while read < 1000:
        read += len(s.recv(1000))
    s.sendall(b'x')
    return s.recv(1)
t('cut', cut)
t('hasty', lambda: ask('hasty.example', 80, b'x' * 100))
dial('fate.example', 80, b'x').close()
s = dial('fate.example', 80, b'x')
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
s.close()
",
            )
            .await;
        assert_eq!(said, "half 3000000\ncut ECONNRESET\nhasty b'go away'");
        let mut ends = [fates.recv().await.unwrap(), fates.recv().await.unwrap()];
        ends.sort_by_key(Result::is_err);
        assert_eq!(ends, [Ok(1), Err(std::io::ErrorKind::ConnectionReset)]);
    })
    .await;
}

#[tokio::test]
async fn without_a_server_a_connection_waits_for_one() {
    inside(async |inside| {
        let echo = echo().await;
        let docker = Docker::connect_with_defaults().unwrap();
        // In the background, so that it outlives the call. It connects when the relay has gone.
        inside
            .bash(
                "relay=$(pgrep -f 'hands connect'); test -n \"$relay\"
                 cat > /tmp/wait.py <<'E'
import os, socket, sys, time
while os.path.exists('/proc/' + sys.argv[1]):
    time.sleep(0.01)
s = socket.create_connection(('echo.example', 80), 60)
s.sendall(b'patience')
s.shutdown(socket.SHUT_WR)
open('/tmp/connected', 'w').close()
open('/tmp/answer', 'wb').write(s.recv(100))
open('/tmp/done', 'w').close()
E
                 python3 /tmp/wait.py $relay >/dev/null 2>&1 &",
            )
            .await;
        let Inside {
            backend,
            handle,
            sandbox,
        } = inside;
        drop(sandbox);
        let exists = async |path: &str| {
            let options = DownloadFromContainerOptionsBuilder::new()
                .path(path)
                .build();
            let mut archive = docker.download_from_container(&handle.0, Some(options));
            matches!(archive.try_next().await, Ok(Some(_)))
        };
        while !exists("/tmp/connected").await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // A server that goes before it has answered has changed nothing.
        let second = Sandbox::attach(&*backend, &handle, &KEY, 2).await.unwrap();
        let mut outgoing = second.outgoing().unwrap();
        let wanted = outgoing.recv().await.unwrap();
        assert_eq!(wanted.host, "echo.example");
        drop(second);
        drop(wanted);
        assert!(!exists("/tmp/done").await);

        let third = Sandbox::attach(&*backend, &handle, &KEY, 3).await.unwrap();
        let seen = serve(third.outgoing().unwrap(), move |_| Some(echo));
        let inside = Inside {
            backend,
            handle: handle.clone(),
            sandbox: third,
        };
        let answer = inside
            .bash("until [ -e /tmp/done ]; do sleep 0.01; done; cat /tmp/answer")
            .await;
        assert_eq!(answer, "patience");
        assert_eq!(*seen.lock().unwrap(), ["echo.example:80"]);
    })
    .await;
}
