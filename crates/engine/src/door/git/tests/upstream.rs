//! `git http-backend` behind HTTP.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    process::Command,
};
use tokio_util::io::{ReaderStream, StreamReader};

type Body = BoxBody<Bytes, std::io::Error>;

/// One request as the server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    pub(super) authorization: Option<String>,
}

/// `git http-backend` behind HTTP, which wants a token for everything.
#[derive(Debug)]
pub(super) struct Upstream {
    root: PathBuf,
    pub(super) token: Mutex<String>,
    seen: Mutex<Vec<Seen>>,
}

impl Upstream {
    pub(super) async fn start(root: &Path) -> (Arc<Self>, u16) {
        let upstream = Arc::new(Self {
            root: root.to_owned(),
            token: Mutex::new("first".to_owned()),
            seen: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = Arc::clone(&upstream);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let upstream = Arc::clone(&serving);
                tokio::spawn(async move {
                    let service = service_fn(|request| {
                        let upstream = Arc::clone(&upstream);
                        async move { upstream.answer(request).await }
                    });
                    http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                });
            }
        });
        (upstream, port)
    }

    pub(super) fn expected(&self) -> String {
        let pair = format!("x-access-token:{}", self.token.lock().unwrap());
        format!("Basic {}", BASE64_STANDARD.encode(pair))
    }

    pub(super) fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }

    async fn answer(&self, request: Request<Incoming>) -> std::io::Result<Response<Body>> {
        let header = |name: &str| {
            let value = request.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let authorization = header(AUTHORIZATION.as_str());
        let target = request.uri().to_string();
        self.seen.lock().unwrap().push(Seen {
            method: request.method().to_string(),
            target: target.clone(),
            authorization: authorization.clone(),
        });
        if target.starts_with("/moved/") {
            let mut response = plain(StatusCode::MOVED_PERMANENTLY, "elsewhere");
            let to = format!("https://evil.example{target}").parse().unwrap();
            response.headers_mut().insert(LOCATION, to);
            return Ok(response);
        }
        if target.contains("/info/lfs/") {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            return Ok(plain(StatusCode::OK, &format!("lfs {}", body.len())));
        }
        if authorization.as_deref() != Some(&*self.expected()) {
            let mut response = plain(StatusCode::UNAUTHORIZED, "who is there?");
            let basic = "Basic realm=\"test\"".parse().unwrap();
            response.headers_mut().insert(WWW_AUTHENTICATE, basic);
            return Ok(response);
        }
        let variables = [
            ("GIT_PROJECT_ROOT", Some(self.root.display().to_string())),
            ("GIT_HTTP_EXPORT_ALL", Some("1".to_owned())),
            ("REMOTE_USER", Some("agent".to_owned())),
            ("REQUEST_METHOD", Some(request.method().to_string())),
            ("PATH_INFO", Some(request.uri().path().to_owned())),
            (
                "QUERY_STRING",
                Some(request.uri().query().unwrap_or_default().to_owned()),
            ),
            ("CONTENT_TYPE", header("content-type")),
            ("CONTENT_LENGTH", header("content-length")),
            ("HTTP_CONTENT_ENCODING", header("content-encoding")),
            ("GIT_PROTOCOL", header("git-protocol")),
        ];
        let mut backend = Command::new("git")
            .arg("http-backend")
            .envs(
                variables
                    .into_iter()
                    .filter_map(|(key, value)| Some((key, value?))),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let mut input = backend.stdin.take().unwrap();
        tokio::spawn(async move {
            let body = request.into_body().into_data_stream();
            let mut body = StreamReader::new(body.map_err(std::io::Error::other));
            let _ = tokio::io::copy(&mut body, &mut input).await;
        });
        let mut output = BufReader::new(backend.stdout.take().unwrap());
        let mut response = Response::builder();
        loop {
            let mut line = String::new();
            output.read_line(&mut line).await?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                break;
            };
            response = match name {
                "Status" => response.status(&value[..3]),
                _ => response.header(name, value),
            };
        }
        let body = ReaderStream::new(output)
            .map_ok(Frame::data)
            .inspect_err(move |_| {
                let _ends_with_its_output = &backend;
            });
        Ok(response.body(StreamBody::new(body).boxed()).unwrap())
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let body = http_body_util::Full::from(text.to_owned());
    Response::builder()
        .status(status)
        .header(CONTENT_TYPE, "text/plain")
        .body(body.map_err(|never| match never {}).boxed())
        .unwrap()
}
