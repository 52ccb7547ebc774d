//! What programs send, and where a secret is in it.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::{LISTED, SECRET, Setting, UNLISTED, basic, limited};

/// A request by hand, in pieces of so many bytes, over Python's TLS.
fn by_hand(cut: usize, request: &str) -> String {
    format!(
        r#"python3 - <<'PROGRAM'
import os, socket, ssl
request = b"""{request}""".replace(b"\n", b"\r\n").replace(b"TOKEN", os.environb[b"TOKEN"])
tls = ssl.create_default_context().wrap_socket(socket.create_connection(("{LISTED}", 443)), server_hostname="{LISTED}")
for at in range(0, len(request), {cut}):
    tls.send(request[at:at + {cut}])
said = b""
while True:
    more = tls.recv(4096)
    said += more
    if not more: break
print(said.decode())
PROGRAM"#
    )
}

/// Whose header `Authorization`, or whose body, is to have the secret.
enum Where {
    Bearer,
    Basic(&'static str),
    Body(&'static str),
}

#[rustfmt::skip]
const PROGRAMS: &[(&str, &str, Where)] = &[
    ("curl", "curl -sS -H \"Authorization: Bearer $TOKEN\" https://api.example.test/x", Where::Bearer),
    ("curl, another host", "curl -sS -H \"Authorization: Bearer $TOKEN\" https://a.wild.example.test/", Where::Bearer),
    ("curl, HTTP/1.1 alone", "curl -sS --http1.1 --oauth2-bearer \"$TOKEN\" https://api.example.test/", Where::Bearer),
    ("curl, HTTP/2 at best", "curl -sS --http2 -H \"Authorization: Bearer $TOKEN\" https://api.example.test/", Where::Bearer),
    ("curl, TLS 1.2", "curl -sS --tls-max 1.2 -H \"Authorization: Bearer $TOKEN\" https://api.example.test/", Where::Bearer),
    ("curl, as a user", "curl -sS -u \"me:$TOKEN\" https://api.example.test/", Where::Basic("me:")),
    ("curl, in the address", "curl -sS \"https://me:$TOKEN@api.example.test/\"", Where::Basic("me:")),
    ("curl, a form", "curl -sS -d \"token=$TOKEN\" -d more=1 https://api.example.test/", Where::Body("token=SECRET&more=1")),
    ("curl, chunked", "printf '{\"t\":\"%s\"}' \"$TOKEN\" | curl -sS -H 'Transfer-Encoding: chunked' --data-binary @- https://api.example.test/", Where::Body("{\"t\":\"SECRET\"}")),
    ("curl, expecting", "curl -sS -H 'Expect: 100-continue' -d \"$TOKEN\" https://api.example.test/", Where::Body("SECRET")),
    ("wget", "wget -qO- --header=\"Authorization: Bearer $TOKEN\" https://api.example.test/", Where::Bearer),
    ("a program that starts a program", "env -i TOKEN=\"$TOKEN\" PATH=\"$PATH\" bash -c 'curl -sS -H \"Authorization: Bearer $TOKEN\" https://api.example.test/'", Where::Bearer),
    ("Python's urllib", "python3 -c 'import os, urllib.request as u; print(u.urlopen(u.Request(\"https://api.example.test/\", headers={\"Authorization\": \"Bearer \" + os.environ[\"TOKEN\"]})).status)'", Where::Bearer),
    ("Python's http.client, a body in pieces", "python3 -c 'import os, http.client as h; c = h.HTTPSConnection(\"api.example.test\"); t = os.environ[\"TOKEN\"].encode(); c.request(\"POST\", \"/\", iter([t[:10], t[10:11], t[11:]]), encode_chunked=True, headers={\"Transfer-Encoding\": \"chunked\"}); print(c.getresponse().status)'", Where::Body("SECRET")),
    ("Node's fetch", "node -e 'fetch(\"https://api.example.test/\", {headers: {authorization: `Bearer ${process.env.TOKEN}`}}).then(r => console.log(r.status))'", Where::Bearer),
    ("Node's fetch, JSON", "node -e 'fetch(\"https://api.example.test/\", {method: \"POST\", body: JSON.stringify({t: process.env.TOKEN})}).then(r => console.log(r.status))'", Where::Body("{\"t\":\"SECRET\"}")),
    ("Node's https", "node -e 'require(\"https\").get(\"https://api.example.test/\", {headers: {authorization: `Bearer ${process.env.TOKEN}`}}, r => r.on(\"data\", () => 0).on(\"end\", () => console.log(r.statusCode)))'", Where::Bearer),
    ("openssl", "printf 'GET / HTTP/1.1\\r\\nHost: api.example.test\\r\\nAuthorization: Bearer %s\\r\\nConnection: close\\r\\n\\r\\n' \"$TOKEN\" | openssl s_client -quiet -verify_return_error -connect api.example.test:443 -servername api.example.test 2>/dev/null", Where::Bearer),
    ("git", "git -c credential.helper= ls-remote \"https://me:$TOKEN@api.example.test/o/r\"; true", Where::Basic("me:")),
];

#[tokio::test]
async fn programs_use_secrets_that_they_do_not_have() -> Result<()> {
    let setting = Setting::new().await?;
    let vault = setting.vault().await?;
    setting.credential(&vault, json!({})).await?;
    let session = setting
        .session(&[&vault], limited(&["*.example.test"]))
        .await?;
    let (placeholder, _) = setting.bash(&session, "printf %s \"$TOKEN\"").await?;
    ensure!(
        placeholder.starts_with("selfsame_placeholder_") && placeholder.len() == 53,
        "{placeholder}\n{}",
        setting.server.log()
    );
    for (name, command, place) in PROGRAMS {
        // git asks without credentials first.
        setting.site.take_seen();
        let (said, _) = setting.bash(&session, command).await?;
        let seen = setting.site.take_seen();
        let context = || format!("{name}\n{said}\n{seen:#?}");
        let last = seen.last().with_context(context)?;
        let authorization = last.header("authorization").unwrap_or_default();
        match place {
            Where::Bearer => ensure!(authorization == format!("Bearer {SECRET}"), context()),
            Where::Basic(user) => {
                ensure!(
                    authorization == basic(&format!("{user}{SECRET}")),
                    context()
                );
            }
            Where::Body(body) => ensure!(last.body == body.replace("SECRET", SECRET), context()),
        }
    }

    // Where it does not go: the address, what is compressed, what is in clear, and other hosts.
    let seen = setting
        .seen(
            &session,
            "curl -sS \"https://api.example.test/$TOKEN?q=$TOKEN\"",
        )
        .await?;
    ensure!(
        seen.target == format!("/{placeholder}?q={placeholder}"),
        "{seen:?}"
    );
    let command = "printf %s \"$TOKEN\" | gzip | curl -sS -H 'Content-Encoding: gzip' --data-binary @- https://api.example.test/";
    let seen = setting.seen(&session, command).await?;
    ensure!(
        seen.header("content-encoding") == Some("gzip") && !seen.body.contains(SECRET),
        "{seen:?}"
    );
    // In clear to the listed name, too.
    let in_clear = format!("http://{LISTED}:{}/", setting.site.plain_port);
    for (url, site) in [
        ("https://other.example.test/", &setting.other),
        ("http://plain.example.test/", &setting.other),
        (&in_clear, &setting.site),
    ] {
        let command = format!("curl -sS -H \"Authorization: Bearer $TOKEN\" -d \"$TOKEN\" {url}");
        let (said, _) = setting.bash(&session, &command).await?;
        let seen = site.take_seen();
        ensure!(seen.len() == 1, "{url}: {said} {seen:?}");
        let expected = format!("Bearer {placeholder}");
        ensure!(
            seen[0].header("authorization") == Some(&*expected),
            "{url}: {seen:?}"
        );
        ensure!(seen[0].body == placeholder, "{url}: {seen:?}");
    }
    // A host that is not listed shows its own certificate, and a listed one the door's.
    let issuer = "openssl s_client -connect HOST:443 -servername HOST </dev/null 2>/dev/null | openssl x509 -noout -issuer";
    let (own, _) = setting
        .bash(&session, &issuer.replace("HOST", UNLISTED))
        .await?;
    ensure!(own.contains("Selfsame test authority"), "{own}");
    let (doors, _) = setting
        .bash(&session, &issuer.replace("HOST", LISTED))
        .await?;
    ensure!(doors.contains("Selfsame sandbox authority"), "{doors}");

    // Split anywhere; and what comes after a change of protocol is carried as it is.
    let split = by_hand(
        7,
        "POST / HTTP/1.1\nHost: api.example.test\nX-Key: TOKEN\nTransfer-Encoding: chunked\nConnection: close\n\n35\nTOKEN\n0\n\n",
    );
    let seen = setting.seen(&session, &split).await?;
    ensure!(
        seen.header("x-key") == Some(SECRET) && seen.body == SECRET,
        "{seen:?}"
    );
    let upgrade = by_hand(
        1000,
        "GET /upgrade HTTP/1.1\nHost: api.example.test\nConnection: Upgrade\nUpgrade: shouting\nSec-WebSocket-Protocol: TOKEN\n\nhello TOKEN\n.",
    );
    setting.site.take_seen();
    let (said, _) = setting.bash(&session, &upgrade).await?;
    let seen = setting.site.take_seen().pop().context("a request")?;
    ensure!(
        seen.header("sec-websocket-protocol") == Some(SECRET),
        "{seen:?}"
    );
    let shouted = format!("HELLO {}", placeholder.to_uppercase());
    ensure!(
        said.contains("101 Switching Protocols") && said.contains(&shouted),
        "{said}"
    );

    let metrics = setting.client().text("/metrics").await?;
    let name = "selfsame_door_secret_requests_total{outcome=\"replaced\"}";
    ensure!(metrics.contains(name), "{name} is not in\n{metrics}");
    Ok(())
}
