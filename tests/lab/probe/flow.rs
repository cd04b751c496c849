//! Traffic that lasts. A line of figures every 50 ms, so that a test can wait for what it needs instead of sleeping, with the
//! pid (inside the container) by which it can be ended early.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::process::id;
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::sys::socket::{self, sockopt};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

const REPORT: Duration = Duration::from_millis(50);

pub fn any(like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// `pps` datagrams a second, on time whatever happens to them. `sent` counts what the kernel took, `refused` what it
/// turned down at once (no route, firewall), `answered` what came back.
pub fn udp_flood(addr: IpAddr, port: u16, pps: u32, length: Duration) -> super::Done {
    let socket = UdpSocket::bind((any(addr), 0))?;
    socket.set_nonblocking(true)?;
    let start = Instant::now();
    let mut reported = start;
    let (mut sent, mut refused, mut answered) = (0u64, 0u64, 0u64);
    let figures =
        |sent, refused, answered| json!({"pid": id(), "sent": sent, "refused": refused, "answered": answered});
    let mut buffer = [0; 256];
    for tick in 0u32.. {
        let due = start + Duration::from_secs(1) / pps * tick;
        if due > start + length {
            break;
        }
        sleep(due.saturating_duration_since(Instant::now()));
        match socket.send_to(&tick.to_be_bytes(), (addr, port)) {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
        while socket.recv_from(&mut buffer).is_ok() {
            answered += 1;
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            println!("{}", figures(sent, refused, answered));
        }
    }
    sleep(Duration::from_millis(200));
    while socket.recv_from(&mut buffer).is_ok() {
        answered += 1;
    }
    println!("{}", figures(sent, refused, answered));
    Ok(())
}

/// How long a new flow is waited for.
const NEW_FLOW: Duration = Duration::from_millis(500);

/// A new flow every 2 ms, each a question of one datagram: by which address the world calls it. `callers` is the history
/// of the answers: each caller that was not the last one's, and when its first answer came, in microseconds of
/// CLOCK_MONOTONIC, which is one for the whole machine.
pub fn udp_new(addr: IpAddr, length: Duration) -> super::Done {
    let start = Instant::now();
    let mut reported = start;
    let mut open: VecDeque<(Instant, UdpSocket)> = VecDeque::new();
    let (mut asked, mut answered) = (0u64, 0u64);
    let mut callers: Vec<(String, u64)> = Vec::new();
    for tick in 0u32.. {
        let due = start + Duration::from_millis(2) * tick;
        if due > start + length {
            break;
        }
        sleep(due.saturating_duration_since(Instant::now()));
        let socket = UdpSocket::bind((any(addr), 0))?;
        socket.set_nonblocking(true)?;
        asked += 1;
        if socket.connect((addr, 80)).and_then(|()| socket.send(b"who")).is_ok() {
            open.push_back((Instant::now(), socket));
        }
        open.retain(|(since, socket)| {
            let mut buffer = [0; 64];
            let Ok(count) = socket.recv(&mut buffer) else { return since.elapsed() < NEW_FLOW };
            answered += 1;
            let caller = String::from_utf8_lossy(&buffer[..count]).into_owned();
            if callers.last().is_none_or(|(last, _)| *last != caller) {
                callers.push((caller, now_us()));
            }
            false
        });
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            println!("{}", json!({"pid": id(), "asked": asked, "answered": answered, "callers": callers}));
        }
    }
    println!("{}", json!({"asked": asked, "answered": answered, "callers": callers}));
    Ok(())
}

fn now_us() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default();
    u64::try_from(now.as_micros()).unwrap_or_default()
}

/// What a socket asks to leave by, or as.
pub enum Bound<'a> {
    Address(IpAddr),
    Device(&'a str),
    Mark(u32),
    Port(u16),
}

/// A few datagrams from a socket that is bound to something.
pub fn udp_burst(bound: &Bound, addr: IpAddr, port: u16, count: u32) -> super::Done {
    let source = if let Bound::Address(source) = bound { *source } else { any(addr) };
    let own = if let Bound::Port(own) = bound { *own } else { 0 };
    let socket = UdpSocket::bind((source, own))?;
    match bound {
        Bound::Address(_) | Bound::Port(_) => {}
        Bound::Device(device) => socket::setsockopt(&socket, sockopt::BindToDevice, &device.into())?,
        Bound::Mark(mark) => socket::setsockopt(&socket, sockopt::Mark, mark)?,
    }
    socket.set_nonblocking(true)?;
    let (mut sent, mut refused, mut answered) = (0, 0, 0);
    for _ in 0..count {
        match socket.send_to(b"burst", (addr, port)) {
            Ok(_) => sent += 1,
            Err(_) => refused += 1,
        }
        sleep(Duration::from_millis(2));
        while socket.recv_from(&mut [0; 64]).is_ok() {
            answered += 1;
        }
    }
    sleep(Duration::from_millis(100));
    while socket.recv_from(&mut [0; 64]).is_ok() {
        answered += 1;
    }
    println!("{}", json!({"sent": sent, "refused": refused, "answered": answered}));
    Ok(())
}

/// An established flow that keeps writing. A flow that is stalled is kept (it must go on by itself when the exit is
/// back); only one that the kernel ended is replaced. `connects` says how many flows there were so far, `echoed` the
/// bytes that came back, `quiet_ms` how long ago the last of them came.
pub fn tcp_hold(addr: IpAddr, port: u16, length: Duration) -> super::Done {
    let start = Instant::now();
    let mut reported = start;
    let mut last = start;
    let (mut echoed, mut written, mut connects) = (0usize, 0usize, 0u32);
    let mut flow: Option<TcpStream> = None;
    let mut error = String::new();
    while start.elapsed() < length {
        match flow.take() {
            None => match TcpStream::connect_timeout(&SocketAddr::new(addr, port), Duration::from_millis(500)) {
                Ok(stream) => {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    connects += 1;
                    flow = Some(stream);
                }
                Err(failure) => error = failure.to_string(),
            },
            Some(stream) => match pump(&stream, &mut echoed, &mut written, &mut last) {
                Ok(()) => flow = Some(stream),
                Err(failure) => error = failure.to_string(),
            },
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let quiet = u64::try_from(last.elapsed().as_millis())?;
            let figures = json!({"pid": id(), "echoed": echoed, "written": written, "connects": connects, "up": flow.is_some(),
                "quiet_ms": quiet, "error": error});
            println!("{figures}");
        }
        sleep(Duration::from_millis(5));
    }
    println!(
        "{}",
        json!({"echoed": echoed, "written": written, "connects": connects, "up": flow.is_some(), "error": error})
    );
    Ok(())
}

fn pump(mut stream: &TcpStream, echoed: &mut usize, written: &mut usize, last: &mut Instant) -> io::Result<()> {
    match stream.write(&[b'.'; 64]) {
        Ok(count) => *written += count,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
        Err(error) => return Err(error),
    }
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                *echoed += count;
                *last = Instant::now();
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
