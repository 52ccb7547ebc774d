//! The operator's own certificate authorities.

use crate::harness::inside;

#[tokio::test]
async fn the_operators_authorities_are_trusted_everywhere() {
    inside(async |inside| {
        // An authority and a server of its own, inside.
        let pem = inside
            .bash(
                "cd /tmp
                 { openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                   -subj /CN=authority -addext keyUsage=critical,keyCertSign -keyout ca.key -out ca.pem
                   openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=leaf \
                   -keyout leaf.key -out leaf.csr
                   openssl x509 -req -in leaf.csr -CA ca.pem -CAkey ca.key -days 1 -out leaf.pem \
                   -extfile <(echo subjectAltName=DNS:localhost; echo authorityKeyIdentifier=keyid)
                 } 2>/dev/null
                 cat > server.py <<'E'
import http.server, ssl
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain('leaf.pem', 'leaf.key')
server = http.server.ThreadingHTTPServer(('127.0.0.1', 4430), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
open('listening', 'w').close()
server.serve_forever()
E
                 setsid python3 server.py >/dev/null 2>&1 &
                 until [ -e listening ]; do sleep 0.01; done
                 cat ca.pem",
            )
            .await;
        let ways = [
            "curl -sf https://localhost:4430/",
            "wget -qO- https://localhost:4430/",
            "python3 -c 'import urllib.request as r; r.urlopen(\"https://localhost:4430/\")'",
            "node -e 'fetch(\"https://localhost:4430/\").catch(() => process.exit(1))'",
            "! git ls-remote https://localhost:4430/ 2>&1 | grep -q certificate",
            "openssl s_client -verify_return_error -connect localhost:4430",
        ];
        let script = ways
            .map(|way| format!("{way} >/dev/null 2>&1 && echo yes || echo no"))
            .join("\n");
        let answers = |answer: &str| vec![answer; ways.len()].join("\n");
        assert_eq!(inside.fresh(&script).await, answers("no"));
        let environment = "env | grep -c /run/selfsame/ca-bundle.pem || true";
        assert_eq!(inside.fresh(environment).await, "0");

        for _ in 0..2 {
            inside.sandbox.trust(&pem).await.unwrap();
        }
        assert_eq!(inside.fresh(&script).await, answers("yes"));
        let count = "grep -c 'Added by Selfsame: begin' /etc/ssl/certs/ca-certificates.crt";
        assert_eq!(inside.fresh(count).await, "1");
        assert_eq!(inside.fresh(environment).await, "11");
        // What the image's own tool makes anew has it, too.
        let anew = "update-ca-certificates >/dev/null 2>&1; env -i curl -sf https://localhost:4430/ >/dev/null && echo yes";
        assert_eq!(inside.fresh(anew).await, "yes");
        inside.sandbox.trust(&pem).await.unwrap();

        let error = inside.sandbox.trust("no certificate").await.unwrap_err();
        assert!(error.to_string().contains("no certificate"), "{error}");
        inside.sandbox.trust("").await.unwrap();
        assert_eq!(inside.fresh(environment).await, "0");
        assert_eq!(inside.fresh(&script).await, answers("no"));
    })
    .await;
}
