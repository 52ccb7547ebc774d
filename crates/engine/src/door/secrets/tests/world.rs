//! A sandbox, a door, and hosts.

use std::sync::{Arc, Mutex};

use secrecy::SecretString;
use selfsame_net::{Hosts, Lookup, Policy};
use selfsame_types::{CredentialId, SessionId, VaultId};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{
        ClientConfig, RootCertStore,
        crypto::aws_lc_rs,
        pki_types::{CertificateDer, ServerName, pem::PemObject as _},
    },
};

use super::host::{Host, Seen, TestAuthority};
use crate::{
    door::{
        Access, Network, Wallet,
        tests::{Inside, access, config, host, limited, made},
    },
    vaults::{InjectionLocation, Networking, Variable},
};

pub(super) const SECRET: &str = "sk-this-is-the-secret";

pub(super) fn variable(name: &str, secret: &str, hosts: &[&str]) -> Variable {
    Variable {
        credential: CredentialId::new(),
        vault: VaultId::new(),
        secret_name: name.to_owned(),
        secret_value: SecretString::from(secret),
        networking: Networking::Limited(Hosts::parse(hosts).unwrap()),
        injection_location: InjectionLocation {
            header: true,
            body: true,
        },
    }
}

/// Knows no name.
#[derive(Debug)]
pub(super) struct Nobody;

impl Lookup for Nobody {
    fn lookup(&self, _: &str) -> std::io::Result<Vec<std::net::IpAddr>> {
        Ok(Vec::new())
    }
}

/// A sandbox whose session has variables, and two hosts with one certificate.
pub(super) struct World {
    pub(super) host: Host,
    pub(super) inside: Inside,
    pub(super) wallet: Arc<Wallet>,
    pub(super) list: Arc<Mutex<Vec<Variable>>>,
    /// The door's authority, and that of the hosts.
    pub(super) doors: String,
    pub(super) hosts: String,
    /// Of the first variable.
    pub(super) placeholder: String,
}

impl World {
    /// Of the names `api.example` and `other.example` some variables list the first.
    pub(super) async fn new(network: Network, variables: Vec<Variable>) -> Self {
        let authority = TestAuthority::new();
        let names = [
            "api.example",
            "other.example",
            "x.wild.example",
            "127.0.0.1",
        ];
        let host = Host::start(&authority, &names).await;
        Self::with(network, variables, host, &authority, &authority).await
    }

    pub(super) async fn with(
        network: Network,
        variables: Vec<Variable>,
        upstream: Host,
        authority: &TestAuthority,
        believed: &TestAuthority,
    ) -> Self {
        let port = Some(upstream.port);
        let loopback = vec!["127.0.0.1/32".parse().unwrap()];
        let policy = Policy::new(loopback, &[believed.pem().into_bytes()]).unwrap();
        let names = ["api.example", "other.example", "x.wild.example"];
        let policy = policy
            .with_hosts(names.map(|name| host(name, "127.0.0.1", port)).to_vec())
            .with_lookup(Arc::new(Nobody));
        let door = made(config(policy));
        let session = SessionId::new();
        let list = Arc::new(Mutex::new(variables));
        let placeholders = door.0.placeholders.clone();
        let wallet = Arc::new(Wallet::of_list(session, placeholders, Arc::clone(&list)));
        let placeholder = wallet
            .environment()
            .await
            .unwrap()
            .first()
            .map_or(String::new(), |(_, placeholder)| placeholder.clone());
        let access = Access {
            session,
            wallet: Some(Arc::clone(&wallet)),
            ..access(network)
        };
        Self {
            host: upstream,
            inside: Inside::new(&door, Some(access)),
            wallet,
            list,
            doors: door.certificate().to_owned(),
            hosts: authority.pem(),
            placeholder,
        }
    }

    pub(super) async fn usual() -> Self {
        let listed = ["api.example", "*.wild.example"];
        Self::new(
            limited(&["*.example", "api.example"]),
            vec![variable("TOKEN", SECRET, &listed)],
        )
        .await
    }

    /// TLS to `host` as a program inside speaks it that trusts one of the authorities.
    pub(super) async fn tls(
        &self,
        host: &str,
        trusted: &str,
        alpn: &[&str],
    ) -> std::io::Result<Client> {
        self.tls_naming(host, host, trusted, alpn).await
    }

    pub(super) async fn tls_naming(
        &self,
        host: &str,
        name: &str,
        trusted: &str,
        alpn: &[&str],
    ) -> std::io::Result<Client> {
        let stream = self.inside.accepted(host, 443).await;
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap())
            .unwrap();
        let mut config = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|it| it.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let tls = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await?;
        Ok(Client { tls })
    }

    /// A connection that the door has opened.
    pub(super) async fn opened(&self, host: &str) -> Client {
        self.tls(host, &self.doors, &["h2", "http/1.1"])
            .await
            .unwrap()
    }

    /// What the host saw of one request, sent in pieces of so many bytes.
    pub(super) async fn seen(&self, host: &str, request: &str, cut: usize) -> Seen {
        let mut client = self.opened(host).await;
        client.send(request, cut).await;
        let (head, _) = client.answer().await;
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut seen = self.host.take_seen();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    }
}

pub(super) struct Client {
    pub(super) tls: TlsStream<DuplexStream>,
}

impl Client {
    pub(super) async fn send(&mut self, text: &str, cut: usize) {
        for piece in text.as_bytes().chunks(cut) {
            self.tls.write_all(piece).await.unwrap();
            self.tls.flush().await.unwrap();
        }
    }

    pub(super) async fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            match self.tls.read_u8().await {
                Ok(byte) => head.push(byte),
                Err(_) => break,
            }
        }
        String::from_utf8(head).unwrap()
    }

    pub(super) async fn answer(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            let value = name
                .eq_ignore_ascii_case("content-length")
                .then_some(value)?;
            value.parse().ok()
        });
        let mut body = vec![0; length.unwrap_or(0)];
        self.tls.read_exact(&mut body).await.unwrap();
        (head, String::from_utf8(body).unwrap())
    }

    pub(super) async fn ask(&mut self, request: &str) -> (String, String) {
        self.send(request, usize::MAX).await;
        self.answer().await
    }
}

pub(super) fn get(headers: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: api.example\r\n{headers}\r\n")
}

pub(super) fn post(headers: &str, body: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: api.example\r\n{headers}\r\n{body}")
}

/// A body in chunks of so many bytes.
pub(super) fn chunks(body: &str, size: usize) -> String {
    let chunks = body.as_bytes().chunks(size);
    let chunks = chunks.map(|chunk| {
        let text = std::str::from_utf8(chunk).unwrap();
        format!("{:x}\r\n{text}\r\n", chunk.len())
    });
    chunks.collect()
}
