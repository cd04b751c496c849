//! One question, one answer: `{"ok":true,"body":...}` or `{"ok":false,"error":...,"ms":...}`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, sockopt};
use nix::sys::time::TimeVal;
use serde_json::json;

/// Longer than any healthy answer in the lab takes, short enough that a suite of silent drops still ends.
const PATIENCE: Duration = Duration::from_millis(1500);
/// The same for one echo of many.
const ECHO_PATIENCE: Duration = Duration::from_millis(700);
const WORDS: &[u8] = b"out by the exit or not at all";

pub fn tcp_echo(addr: IpAddr, port: u16) -> super::Done {
    say(|| {
        let mut stream = connect(addr, port)?;
        stream.write_all(WORDS)?;
        let mut answer = vec![0; WORDS.len()];
        stream.read_exact(&mut answer)?;
        text(answer)
    })
}

/// The same from a port of one's own.
pub fn tcp_echo_from(own: u16, addr: IpAddr, port: u16, patience: Duration) -> super::Done {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, SockFlag::empty(), None)?;
    socket::setsockopt(&socket, sockopt::ReuseAddr, &true)?;
    // It ends by a reset, and nothing of it is left in the way of the next one.
    socket::setsockopt(&socket, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 })?;
    let patience = TimeVal::new(patience.as_secs().cast_signed(), patience.subsec_micros().into());
    // What connect() waits for, too (socket(7)).
    socket::setsockopt(&socket, sockopt::SendTimeout, &patience)?;
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &patience)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(super::flow::any(addr), own)))?;
    say(|| {
        socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(addr, port)))?;
        let mut stream = TcpStream::from(socket);
        stream.write_all(WORDS)?;
        let mut answer = vec![0; WORDS.len()];
        stream.read_exact(&mut answer)?;
        text(answer)
    })
}

pub fn udp_echo(addr: IpAddr, port: u16) -> super::Done {
    say(|| {
        let socket = udp_to(addr, port)?;
        let mut answer = vec![0; 2048];
        // A connected UDP socket reports the ICMP error of an earlier datagram, so ask more than once.
        for attempt in 0..3 {
            socket.send(WORDS)?;
            match socket.recv(&mut answer) {
                Ok(count) => return text(answer[..count].to_vec()),
                Err(error) if attempt == 2 || error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
            }
        }
        Err(io::ErrorKind::TimedOut.into())
    })
}

pub fn http(addr: IpAddr, port: u16) -> super::Done {
    say(|| get(connect(addr, port)?))
}

/// Sends `bytes` to the sink; `body` is what arrived.
pub fn push(addr: IpAddr, bytes: u64) -> super::Done {
    say(|| {
        let mut stream = connect(addr, 9)?;
        stream.set_write_timeout(Some(PATIENCE))?;
        io::copy(&mut io::repeat(7).take(bytes), &mut stream)?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count)?;
        Ok(u64::from_be_bytes(count).to_string())
    })
}

/// Gets `bytes` from the source; `body` is what arrived.
pub fn fetch(addr: IpAddr, bytes: u64) -> super::Done {
    say(|| {
        let mut stream = connect(addr, 19)?;
        stream.write_all(&bytes.to_be_bytes())?;
        Ok(io::copy(&mut stream, &mut io::sink())?.to_string())
    })
}

pub fn via_proxy(proxy: IpAddr, port: u16, to: IpAddr, to_port: u16) -> super::Done {
    say(|| {
        let mut stream = connect(proxy, port)?;
        write!(stream, "CONNECT {} HTTP/1.0\r\n\r\n", SocketAddr::new(to, to_port))?;
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte)? == 1 {
            head.push(byte[0]);
        }
        if !head.starts_with(b"HTTP/1.0 200") {
            return Err(io::Error::other(String::from_utf8_lossy(&head).trim().to_string()));
        }
        get(stream)
    })
}

pub fn dns(server: IpAddr, name: &str, port: u16) -> super::Done {
    say(|| {
        let socket = udp_to(server, port)?;
        let question = question(name)?;
        socket.send(&question)?;
        let mut answer = [0; 512];
        let count = socket.recv(&mut answer)?;
        address_in(&question, &answer[..count])
    })
}

/// The same by TCP: each message behind its length (RFC 1035, 4.2.2).
pub fn dns_tcp(server: IpAddr, name: &str, port: u16) -> super::Done {
    say(|| {
        let mut stream = connect(server, port)?;
        let question = question(name)?;
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &question].concat())?;
        let mut length = [0; 2];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; u16::from_be_bytes(length).into()];
        stream.read_exact(&mut answer)?;
        address_in(&question, &answer)
    })
}

fn question(name: &str) -> io::Result<Vec<u8>> {
    let mut question = vec![0x54, 0x4a, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(u8::try_from(label.len()).map_err(io::Error::other)?);
        question.extend_from_slice(label.as_bytes());
    }
    question.extend_from_slice(&[0, 0, 1, 0, 1]);
    Ok(question)
}

/// The one A record behind the question, which every answer repeats. An engine's resolver may put its own words behind it
/// (EDNS).
fn address_in(question: &[u8], answer: &[u8]) -> io::Result<String> {
    /// A pointer to the name, type A, class IN (RFC 1035, 4.1.3 and 4.1.4).
    const RECORD: [u8; 6] = [0xc0, 0x0c, 0, 1, 0, 1];
    const TTL_LEN: usize = 4;
    let record = answer.get(question.len()..).and_then(|rest| rest.strip_prefix(&RECORD));
    match record.and_then(|rest| rest.get(TTL_LEN..)) {
        Some([0, 4, a, b, c, d, ..]) if answer[7] > 0 => Ok(IpAddr::from([*a, *b, *c, *d]).to_string()),
        _ => Err(io::Error::other("the answer holds no address")),
    }
}

/// ICMP echo over a raw socket. `body` is the number of answers.
pub fn ping(addr: IpAddr, count: u16) -> super::Done {
    let (family, protocol, request, reply, skip) = match addr {
        IpAddr::V4(_) => (AddressFamily::Inet, SockProtocol::Icmp, 8, 0, 20),
        IpAddr::V6(_) => (AddressFamily::Inet6, SockProtocol::IcmpV6, 128, 129, 0),
    };
    let socket = socket::socket(family, SockType::Raw, SockFlag::empty(), protocol)?;
    let wait = TimeVal::new(0, i64::from(ECHO_PATIENCE.subsec_micros()));
    socket::setsockopt(&socket, sockopt::ReceiveTimeout, &wait)?;
    let to = SockaddrStorage::from(SocketAddr::new(addr, 0));
    say(|| {
        let mut answers = 0;
        let mut failure = None;
        for sequence in 0..count {
            if let Err(error) =
                socket::sendto(socket.as_raw_fd(), &echo_request(request, sequence), &to, MsgFlags::empty())
            {
                failure = Some(io::Error::from(error));
                continue;
            }
            let deadline = Instant::now() + ECHO_PATIENCE;
            let mut packet = [0; 2048];
            while Instant::now() < deadline {
                let Ok(count) = socket::recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) else { break };
                let Some(icmp) = packet[..count].get(skip..) else { continue };
                if icmp.len() >= 8 && icmp[0] == reply && icmp[4..8] == echo_request(request, sequence)[4..8] {
                    answers += 1;
                    break;
                }
            }
        }
        match (answers, failure) {
            (0, Some(error)) => Err(error),
            (0, None) => Err(io::ErrorKind::TimedOut.into()),
            _ => Ok(answers.to_string()),
        }
    })
}

/// Not the pid: containers have the same ones again and again, and the host's connection tracking would take the ping
/// of one for a part of another's that had its address before.
fn echo_id() -> u16 {
    static ID: OnceLock<u16> = OnceLock::new();
    *ID.get_or_init(|| {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let [.., high, low] = (nanos / 1000).to_be_bytes();
        u16::from_be_bytes([high, low])
    })
}

fn echo_request(kind: u8, sequence: u16) -> Vec<u8> {
    let id = echo_id();
    let mut packet = vec![kind, 0, 0, 0];
    packet.extend_from_slice(&id.to_be_bytes());
    packet.extend_from_slice(&sequence.to_be_bytes());
    packet.extend_from_slice(WORDS);
    // The kernel fills in the checksum of ICMPv6 itself and ignores this one.
    let sum = super::forge::checksum(&[&packet]);
    packet[2..4].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn connect(addr: IpAddr, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::new(addr, port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn udp_to(addr: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((super::flow::any(addr), 0))?;
    socket.connect((addr, port))?;
    socket.set_read_timeout(Some(PATIENCE / 3))?;
    Ok(socket)
}

fn get(mut stream: TcpStream) -> io::Result<String> {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((_, body)) => Ok(body.to_string()),
        None => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(io::Error::other)
}

fn say(question: impl FnOnce() -> io::Result<String>) -> super::Done {
    let start = Instant::now();
    let answer = question();
    let ms = u64::try_from(start.elapsed().as_millis())?;
    let line = match answer {
        Ok(body) => json!({"ok": true, "body": body, "ms": ms}),
        Err(error) => json!({"ok": false, "error": error.to_string(), "kind": format!("{:?}", error.kind()), "ms": ms}),
    };
    println!("{line}");
    Ok(())
}
