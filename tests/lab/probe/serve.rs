//! The services of the lab's internet. Bound to exactly the addresses asked for, so that an answer always comes from
//! the address that was called.

use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

pub fn run(addresses: &[&str]) -> super::Done {
    for address in addresses {
        let addr = super::ip(address)?;
        let echo = TcpListener::bind((addr, 7))?;
        let http = TcpListener::bind((addr, 80))?;
        let sink = TcpListener::bind((addr, 9))?;
        let source = TcpListener::bind((addr, 19))?;
        let udp = UdpSocket::bind((addr, 7))?;
        let who = UdpSocket::bind((addr, 80))?;
        thread::spawn(move || accept(&echo, |stream, _| echo_back(stream)));
        thread::spawn(move || accept(&http, answer_http));
        thread::spawn(move || accept(&sink, |stream, _| count(stream)));
        thread::spawn(move || accept(&source, |stream, _| deliver(stream)));
        thread::spawn(move || answer_datagrams(&udp, |said, _| said.to_vec()));
        thread::spawn(move || answer_datagrams(&who, |_, peer| peer.ip().to_string().into_bytes()));
    }
    ready()
}

/// A proxy as many hosts run it: whoever reaches it leaves by the host's own uplink.
pub fn proxy(addr: IpAddr, port: u16) -> super::Done {
    let listener = TcpListener::bind((addr, port))?;
    thread::spawn(move || accept(&listener, |stream, _| relay(stream)));
    ready()
}

fn ready() -> super::Done {
    println!("{{\"event\":\"ready\"}}");
    loop {
        thread::park();
    }
}

fn accept(listener: &TcpListener, serve: impl Fn(TcpStream, SocketAddr) + Copy + Send + 'static) {
    for stream in listener.incoming().flatten() {
        if let Ok(peer) = stream.peer_addr() {
            thread::spawn(move || serve(stream, peer));
        }
    }
}

fn echo_back(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn answer_datagrams(socket: &UdpSocket, answer: fn(&[u8], SocketAddr) -> Vec<u8>) {
    let mut buffer = [0; 2048];
    loop {
        // Errors here are ICMP answers to earlier datagrams: the next caller still wants an answer.
        if let Ok((count, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&answer(&buffer[..count], peer), peer);
        }
    }
}

/// Takes everything, and says how much it was.
fn count(mut stream: TcpStream) {
    if let Ok(count) = std::io::copy(&mut stream, &mut std::io::sink()) {
        let _ = stream.write_all(&count.to_be_bytes());
    }
}

/// Gives as many bytes as it is asked for.
fn deliver(mut stream: TcpStream) {
    let mut count = [0; 8];
    if stream.read_exact(&mut count).is_ok() {
        let _ = std::io::copy(&mut std::io::repeat(7).take(u64::from_be_bytes(count)), &mut stream);
    }
}

fn answer_http(mut stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    read_head(&mut stream);
    let body = peer.ip().to_string();
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    let _ = stream.write_all((head + &body).as_bytes());
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 && matches!(stream.read(&mut byte), Ok(1)) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn relay(mut client: TcpStream) {
    let head = read_head(&mut client);
    let target = head.strip_prefix("CONNECT ").and_then(|rest| rest.split(' ').next()).and_then(|to| to.parse().ok());
    let Some(mut server) =
        target.and_then(|to: SocketAddr| TcpStream::connect_timeout(&to, Duration::from_secs(3)).ok())
    else {
        let _ = client.write_all(b"HTTP/1.0 502 Bad Gateway\r\n\r\n");
        return;
    };
    let _ = client.write_all(b"HTTP/1.0 200 Connected\r\n\r\n");
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), server.try_clone()) else { return };
    thread::spawn(move || std::io::copy(&mut from_client, &mut to_server));
    let _ = std::io::copy(&mut server, &mut client);
    // The other thread still holds the connection: closing it here takes more than dropping it.
    let _ = client.shutdown(Shutdown::Both);
}
