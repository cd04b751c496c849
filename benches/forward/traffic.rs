//! What is sent through, and what of it arrives.

use std::fs::File;
use std::io::IoSlice;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrStorage, sendmmsg};
use serde_json::Value;
use tunjail::kernel::netns::Netns;

use crate::lab::{SINK_LINK, within};

/// With the headers of IPv4 a frame of 64 bytes, its checksum counted: the smallest that Ethernet has.
const PAYLOAD: usize = 18;
/// Datagrams per system call.
const AT_ONCE: usize = 32;
/// Connections that the datagrams are spread over.
const FLOWS: usize = 4;
/// discard (RFC 863)
const PORT: u16 = 9;

/// Datagrams from a member, at full rate. They are sent by one thread, and the kernel carries each all the way to the
/// sink before it takes the next, so the rate is one by the time that a packet costs.
pub struct Datagrams {
    flows: Vec<UdpSocket>,
    /// `/proc/net/dev` of the sink.
    counters: File,
}

impl Datagrams {
    /// Sockets belong to the namespace that they were opened in, whoever uses them later.
    pub fn between(member: &Netns, sink: &Netns, to: IpAddr) -> Result<Self> {
        let any: IpAddr = if to.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
        let flows = within(member, || {
            let open = |_| {
                let socket = UdpSocket::bind(SocketAddr::new(any, 0))?;
                socket.connect(SocketAddr::new(to, PORT))?;
                Ok(socket)
            };
            (0..FLOWS).map(open).collect::<std::io::Result<Vec<_>>>()
        })?;
        let counters = within(sink, || File::open("/proc/thread-self/net/dev"))?;
        Ok(Self { flows, counters })
    }

    /// Sends until something arrives: the first packets wait for their neighbours to be found.
    pub fn wake(&self) -> Result<()> {
        let (deadline, before) = (Instant::now() + Duration::from_secs(3), self.arrived()?);
        while self.arrived()? < before + FLOWS as u64 {
            ensure!(Instant::now() < deadline, "nothing arrives at the sink");
            self.flows.iter().try_for_each(|flow| flow.send(&[0; PAYLOAD]).map(drop))?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// Sends for so long and returns how many arrived in a second. Fails when they did not: then it would
    /// be the rate of losing them.
    pub fn rate(&self, time: Duration) -> Result<f64> {
        let payload = [0u8; PAYLOAD];
        let messages = [[IoSlice::new(&payload)]; AT_ONCE];
        let nowhere: [Option<SockaddrStorage>; AT_ONCE] = [None; AT_ONCE];
        let mut headers = MultiHeaders::preallocate(AT_ONCE, None);
        let (mut sent, before) = (0, self.arrived()?);
        let begin = Instant::now();
        while begin.elapsed() < time {
            for flow in &self.flows {
                sent += sendmmsg(flow.as_raw_fd(), &mut headers, &messages, nowhere, [], MsgFlags::empty())?.count();
            }
        }
        let took = begin.elapsed();
        let arrived = self.arrived_of(before, sent)?;
        Ok(arrived as f64 / took.as_secs_f64())
    }

    /// The last of them may still be on their way on another processor, and one in a thousand may be lost.
    fn arrived_of(&self, before: u64, sent: usize) -> Result<u64> {
        let deadline = Instant::now() + Duration::from_millis(20);
        loop {
            let arrived = self.arrived()? - before;
            if arrived >= sent as u64 {
                return Ok(arrived);
            }
            if Instant::now() >= deadline {
                ensure!(arrived * 1000 >= sent as u64 * 999, "{arrived} of {sent} datagrams arrived");
                return Ok(arrived);
            }
            std::thread::yield_now();
        }
    }

    fn arrived(&self) -> Result<u64> {
        let mut bytes = [0; 4096];
        let read = self.counters.read_at(&mut bytes, 0)?;
        let text = std::str::from_utf8(&bytes[..read])?;
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(SINK_LINK)?.strip_prefix(':'));
        // proc_pid_net(5): bytes, packets, ... received
        let packets = line.and_then(|line| line.split_whitespace().nth(1)).context("no counters of the sink's link")?;
        Ok(packets.parse()?)
    }
}

/// An iperf3 server in the sink.
pub struct Server(Child);

impl Server {
    pub fn start(sink: &Netns) -> Result<Self> {
        let mut command = Command::new("iperf3");
        command.arg("--server").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self(within(sink, || command.spawn())?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Bits per second that the sink received of `bytes` from the member by one TCP connection.
pub fn tcp_rate(member: &Netns, to: IpAddr, bytes: &str) -> Result<f64> {
    let mut command = Command::new("iperf3");
    command.args(["--json", "--bytes", bytes, "--client", &to.to_string()]).stdin(Stdio::null());
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let output = within(member, || command.output())?;
        let report: Value = serde_json::from_slice(&output.stdout).context("iperf3's report")?;
        if let Some(rate) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
            return Ok(rate);
        }
        // The server serves one after the other, and has to have begun.
        ensure!(Instant::now() < deadline, "iperf3: {}", report["error"]);
        std::thread::sleep(Duration::from_millis(5));
    }
}
