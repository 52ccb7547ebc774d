//! Speaking to the kernel about its network: messages, and waiting for their acknowledgements.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType,
    netlink::SocketAddrNetlink, sockopt,
};

/// Of one message.
const HEADER: usize = 16;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const NESTED: u16 = 0x8000;

pub(super) const REQUEST: u16 = 0x1;
pub(super) const ACKNOWLEDGE: u16 = 0x4;
pub(super) const DUMP: u16 = 0x300;
pub(super) const CREATE: u16 = 0x400;
pub(super) const APPEND: u16 = 0x800;

/// Messages that go out together.
#[derive(Debug, Default)]
pub(super) struct Batch {
    bytes: Vec<u8>,
    messages: u32,
    /// Sequence numbers of those that ask for an acknowledgement.
    awaited: Vec<u32>,
}

impl Batch {
    /// One message: `fixed` is the structure that follows the header, `fill` adds the attributes.
    pub(super) fn message(
        &mut self,
        kind: u16,
        flags: u16,
        fixed: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.messages += 1;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.messages.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(fixed);
        fill(&mut Attributes(&mut self.bytes));
        let length = (self.bytes.len() - start) as u32;
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        if flags & ACKNOWLEDGE != 0 {
            self.awaited.push(self.messages);
        }
    }
}

/// The attributes of a message, or of another attribute.
pub(super) struct Attributes<'a>(&'a mut Vec<u8>);

impl Attributes<'_> {
    pub(super) fn bytes(&mut self, kind: u16, value: &[u8]) {
        // The length counts the attribute's header and not what aligns the next one.
        let length = (4 + value.len()) as u16;
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// With the NUL at its end that the kernel expects.
    pub(super) fn text(&mut self, kind: u16, value: &str) {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes);
    }

    /// A number in the network's order, as nftables has them.
    pub(super) fn number(&mut self, kind: u16, value: u32) {
        self.bytes(kind, &value.to_be_bytes());
    }

    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) {
        let start = self.0.len();
        self.bytes(kind | NESTED, &[]);
        fill(&mut Attributes(self.0));
        let length = (self.0.len() - start) as u16;
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }
}

/// A socket to one part of the kernel.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    pub(super) fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        // The kernel answers at once; PID 1 must not hang at its start if it does not.
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(Duration::from_secs(5)))?;
        Ok(Self(fd))
    }

    /// Sends the batch and waits until all of it is acknowledged. Returns the first error, or what
    /// was dumped: type and content (without header) of each message.
    pub(super) fn send(&self, batch: &Batch) -> io::Result<Vec<(u16, Vec<u8>)>> {
        let kernel = SocketAddrNetlink::new(0, 0);
        rustix::net::sendto(&self.0, &batch.bytes, SendFlags::empty(), &kernel)?;
        let mut awaited = batch.awaited.clone();
        let mut dumped = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let (length, _) = rustix::net::recv(&self.0, &mut *buffer, RecvFlags::empty())?;
            let mut rest = &buffer[..length];
            while let Some((kind, sequence, content, next)) = split(rest) {
                rest = next;
                match kind {
                    ERROR => {
                        let code = content.first_chunk().copied().unwrap_or_default();
                        match i32::from_ne_bytes(code) {
                            0 => awaited.retain(|number| *number != sequence),
                            code => return Err(io::Error::from_raw_os_error(-code)),
                        }
                    }
                    DONE => return Ok(dumped),
                    _ => dumped.push((kind, content.to_vec())),
                }
            }
            if awaited.is_empty() && !batch.awaited.is_empty() {
                return Ok(dumped);
            }
        }
    }
}

/// The first message: type, sequence number, content; and what follows it.
fn split(bytes: &[u8]) -> Option<(u16, u32, &[u8], &[u8])> {
    let header = bytes.first_chunk::<HEADER>()?;
    let [l0, l1, l2, l3, k0, k1, _, _, s0, s1, s2, s3, ..] = *header;
    let length = u32::from_ne_bytes([l0, l1, l2, l3]) as usize;
    let content = bytes.get(HEADER..length)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some((
        u16::from_ne_bytes([k0, k1]),
        u32::from_ne_bytes([s0, s1, s2, s3]),
        content,
        next,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let mut batch = Batch::default();
        batch.message(7, REQUEST | ACKNOWLEDGE, &[9; 4], |attributes| {
            attributes.text(1, "ab");
            attributes.nest(2, |inner| inner.number(3, 5));
        });
        batch.message(8, REQUEST, &[], |_| {});
        let (kind, sequence, content, rest) = split(&batch.bytes).unwrap();
        assert_eq!((kind, sequence), (7, 1));
        let two = (2 | NESTED).to_ne_bytes();
        let expected = [
            &[9; 4][..],
            &7_u16.to_ne_bytes(),
            &1_u16.to_ne_bytes(),
            b"ab\0\0",
            &12_u16.to_ne_bytes(),
            &two,
            &8_u16.to_ne_bytes(),
            &3_u16.to_ne_bytes(),
            &[0, 0, 0, 5],
        ]
        .concat();
        assert_eq!(content, expected);
        let (kind, sequence, content, rest) = split(rest).unwrap();
        assert_eq!((kind, sequence, content, rest), (8, 2, &[][..], &[][..]));
        assert_eq!(batch.awaited, [1]);
        assert_eq!(split(&[0; 15]), None);
        assert_eq!(split(&[0; 16]), None);
    }
}
