//! Servers that note who comes, and answer with the marker.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
};

/// What reached one of them: the first bytes of each connection.
#[derive(Debug, Clone, Default)]
pub struct Visits(Arc<Mutex<Vec<String>>>);

impl Visits {
    fn note(&self, first: &[u8]) {
        let text = String::from_utf8_lossy(first).into_owned();
        self.0.lock().expect("nobody panics here").push(text);
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().expect("nobody panics here"))
    }
}

/// A server at `address`. To `GET /to?<url>` it answers with a redirect, to all else with the marker.
pub async fn tcp(address: &str, marker: &str) -> Result<(u16, Visits)> {
    let listener = TcpListener::bind((address, 0)).await?;
    let port = listener.local_addr()?.port();
    let (visits, marker) = (Visits::default(), marker.to_owned());
    let noted = visits.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (noted, marker) = (noted.clone(), marker.clone());
            tokio::spawn(async move { answer(stream, &noted, &marker).await });
        }
    });
    Ok((port, visits))
}

async fn answer(mut stream: TcpStream, visits: &Visits, marker: &str) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    let count = stream.read(&mut buffer).await?;
    let first = &buffer[..count];
    visits.note(first);
    let text = String::from_utf8_lossy(first);
    let to = text
        .strip_prefix("GET /to?")
        .and_then(|rest| rest.split(' ').next());
    let response = match to {
        Some(to) => format!(
            "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        ),
        None => format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{marker}",
            marker.len()
        ),
    };
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// Answers each datagram with the marker.
pub async fn udp(address: &str, marker: &str) -> Result<(u16, Visits)> {
    let socket = UdpSocket::bind((address, 0)).await?;
    let port = socket.local_addr()?.port();
    let (visits, marker) = (Visits::default(), marker.to_owned());
    let noted = visits.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
            noted.note(&buffer[..count]);
            let _ = socket.send_to(marker.as_bytes(), from).await;
        }
    });
    Ok((port, visits))
}
