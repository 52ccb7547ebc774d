//! What remains of the door where the runtime does not let it redirect.

use bollard::{
    Docker,
    models::ContainerCreateBody,
    query_parameters::{CreateContainerOptions, InspectContainerOptions, StartContainerOptions},
};
use selfsame_sandbox::{DoorState, Handle, Sandbox};

use crate::harness::{Inside, KEY, echo, inside, serve};

/// The same container once more, but without the capability that the redirect takes.
async fn without_redirect(inside: &Inside) -> Inside {
    let docker = Docker::connect_with_defaults().unwrap();
    let like = docker
        .inspect_container(&inside.handle.0, None::<InspectContainerOptions>)
        .await
        .unwrap();
    let config = like.config.unwrap();
    let mut host = like.host_config.unwrap();
    let kept = host.cap_add.take().unwrap().into_iter();
    host.cap_add = Some(kept.filter(|name| !name.ends_with("NET_ADMIN")).collect());
    let body = ContainerCreateBody {
        image: config.image,
        entrypoint: config.entrypoint,
        cmd: config.cmd,
        user: config.user,
        hostname: config.hostname,
        working_dir: config.working_dir,
        labels: config.labels,
        host_config: Some(host),
        ..Default::default()
    };
    let made = docker
        .create_container(None::<CreateContainerOptions>, body)
        .await
        .unwrap();
    docker
        .start_container(&made.id, None::<StartContainerOptions>)
        .await
        .unwrap();
    let handle = Handle(made.id);
    let sandbox = Sandbox::attach(&*inside.backend, &handle, &KEY, 1)
        .await
        .unwrap();
    Inside {
        backend: inside.backend.clone(),
        handle,
        sandbox,
    }
}

#[tokio::test]
async fn without_a_redirect_names_and_proxies_still_work() {
    inside(async |redirected| {
        let inside = without_redirect(&redirected).await;
        let DoorState::Ports { reason } = inside.sandbox.door().await.unwrap() else {
            panic!("{:?}", inside.sandbox.door().await);
        };
        assert!(reason.contains("not permitted"), "{reason}");
        let sets = "grep -E '^Cap(Eff|Bnd)' /proc/self/status | cut -f2";
        assert_eq!(
            inside.bash(sets).await,
            "00000000800000fb\n00000000800000fb"
        );

        let echo = echo().await;
        let seen = serve(inside.sandbox.outgoing().unwrap(), move |host| {
            (host != "refused.example").then_some(echo)
        });
        let said = inside
            .python(
                "
proxy = os.environ['https_proxy'].removeprefix('http://').split(':')
def through(request):
    return ask(proxy[0], int(proxy[1]), request)
t('address', lambda: socket.gethostbyname('echo.example')[:7])
t('back', lambda: socket.gethostbyaddr(socket.gethostbyname('echo.example'))[0])
for port in (80, 443, 22, 3128):
    t('port', lambda: ask('echo.example', port, b'by name'))
t('refused', lambda: ask('refused.example', 443))
t('other port', lambda: dial('echo.example', 8080))
t('literal', lambda: dial('192.0.2.1', 80))
t('unknown', lambda: ask('127.99.9.9', 80))
t('here', lambda: dial('127.0.0.1', 4001))
t('connect', lambda: through(b'CONNECT 192.0.2.1:8080 HTTP/1.1\\r\\n\\r\\nand more')[-8:])
t('get', lambda: through(b'GET http://echo.example/a HTTP/1.1\\r\\nHost: echo.example\\r\\n\\r\\n'))
t('no', lambda: through(b'CONNECT refused.example:443 HTTP/1.1\\r\\n\\r\\n').split(b'\\r\\n')[0])
t('inside', lambda: through(b'CONNECT localhost:1 HTTP/1.1\\r\\n\\r\\n').split(b'\\r\\n')[0])
t('none', lambda: through(b'what\\r\\n\\r\\n').split(b'\\r\\n')[0])
",
            )
            .await;
        let expected = [
            "address 127.64.",
            "back echo.example",
            "port b'by name'",
            "port b'by name'",
            "port b'by name'",
            "port b'by name'",
            "refused ECONNRESET",
            "other port ECONNREFUSED",
            "literal ENETUNREACH",
            "unknown ECONNRESET",
            "here ECONNREFUSED",
            "connect b'and more'",
            "get b'GET /a HTTP/1.1\\r\\nConnection: close\\r\\nHost: echo.example\\r\\n\\r\\n'",
            "no b'HTTP/1.1 403 Forbidden'",
            "inside b'HTTP/1.1 403 Forbidden'",
            "none b'HTTP/1.1 400 Bad Request'",
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), expected);
        let expected = [
            "echo.example:80",
            "echo.example:443",
            "echo.example:22",
            "echo.example:3128",
            "refused.example:443",
            "192.0.2.1:8080",
            "echo.example:80",
            "refused.example:443",
        ];
        assert_eq!(*seen.lock().unwrap(), expected);
    })
    .await;
}
