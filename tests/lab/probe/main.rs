//! The probe: what runs inside a container, and behind the lab's services, to put packets on the wire and to say in
//! JSON lines what became of them.
//!
//! One static program, so that a container needs nothing but it and busybox. It judges nothing: `"ok": false` is an
//! answer like any other and the exit status is 0; a status of 2 means that the probe was called wrongly or could not
//! do what it was asked for (no raw socket, say), so that a broken probe is never taken for a closed jail.

mod ask;
mod flow;
mod forge;
mod init;
mod kill;
mod serve;

use std::net::IpAddr;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

/// What a subcommand returns: nothing, or why the probe itself failed.
type Done = Result<(), Box<dyn std::error::Error>>;

const USAGE: &str = "usage: probe COMMAND ARGS
  init                                              pid 1 of the lab
  kill-at N PROGRAM ARGS                            dies before its N-th call that changes something; 0: not at all
  serve ADDR...                                     TCP and UDP echo on 7; HTTP and UDP on 80: the caller's address
  proxy ADDR PORT                                   HTTP proxy (CONNECT and GET)
  tcp-echo ADDR PORT | udp-echo ADDR PORT | http ADDR [PORT] | ping ADDR COUNT
  dns SERVER NAME [PORT] | dns-tcp SERVER NAME [PORT]
  push ADDR BYTES | fetch ADDR BYTES                to a sink on 9, from a source on 19
  via-proxy PROXY PORT TARGET TARGETPORT
  udp-flood ADDR PORT PPS SECONDS                   counts answers
  udp-from SOURCE ADDR PORT COUNT                   bound to an address
  udp-dev DEVICE ADDR PORT COUNT                    SO_BINDTODEVICE
  udp-mark MARK ADDR PORT COUNT                     SO_MARK
  udp-port OWN ADDR PORT COUNT                      bound to a port
  tcp-port OWN ADDR PORT MS                         the same, one echo, waited for so long
  tcp-hold ADDR PORT SECONDS                        an established flow that writes every 5 ms
  udp-new ADDR SECONDS                              a new flow every 2 ms: who is seen as the caller, and since when
  spoof-udp SOURCE ADDR PORT COUNT                  raw socket, forged source
  frame DEVICE SRCMAC DSTMAC SOURCE ADDR PORT COUNT packet socket, forged link layer
  send DEVICE COUNT HEX...                          packet socket, whole frames as given
  arp DEVICE SRCMAC SENDERIP TARGETIP COUNT         forged ARP answer";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args.iter().map(String::as_str).collect::<Vec<_>>()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("probe: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &[&str]) -> Done {
    match args {
        ["init"] => init::run(),
        ["kill-at", nth, program, args @ ..] => kill::run(num(nth)?, program, args),
        ["serve", addresses @ ..] => serve::run(addresses),
        ["proxy", addr, port] => serve::proxy(ip(addr)?, num(port)?),
        ["tcp-echo", addr, port] => ask::tcp_echo(ip(addr)?, num(port)?),
        ["udp-echo", addr, port] => ask::udp_echo(ip(addr)?, num(port)?),
        ["http", addr] => ask::http(ip(addr)?, 80),
        ["http", addr, port] => ask::http(ip(addr)?, num(port)?),
        ["push", addr, bytes] => ask::push(ip(addr)?, num(bytes)?),
        ["fetch", addr, bytes] => ask::fetch(ip(addr)?, num(bytes)?),
        ["via-proxy", proxy, port, to, to_port] => ask::via_proxy(ip(proxy)?, num(port)?, ip(to)?, num(to_port)?),
        ["dns", server, name] => ask::dns(ip(server)?, name, 53),
        ["dns", server, name, port] => ask::dns(ip(server)?, name, num(port)?),
        ["dns-tcp", server, name] => ask::dns_tcp(ip(server)?, name, 53),
        ["dns-tcp", server, name, port] => ask::dns_tcp(ip(server)?, name, num(port)?),
        ["ping", addr, count] => ask::ping(ip(addr)?, num(count)?),
        ["udp-flood", addr, port, pps, seconds] => {
            flow::udp_flood(ip(addr)?, num(port)?, num(pps)?, Duration::from_secs_f64(num(seconds)?))
        }
        ["udp-from", source, addr, port, count] => {
            flow::udp_burst(&flow::Bound::Address(ip(source)?), ip(addr)?, num(port)?, num(count)?)
        }
        ["udp-dev", device, addr, port, count] => {
            flow::udp_burst(&flow::Bound::Device(device), ip(addr)?, num(port)?, num(count)?)
        }
        ["udp-mark", mark, addr, port, count] => {
            flow::udp_burst(&flow::Bound::Mark(num(mark)?), ip(addr)?, num(port)?, num(count)?)
        }
        ["udp-port", own, addr, port, count] => {
            flow::udp_burst(&flow::Bound::Port(num(own)?), ip(addr)?, num(port)?, num(count)?)
        }
        ["tcp-port", own, addr, port, ms] => {
            ask::tcp_echo_from(num(own)?, ip(addr)?, num(port)?, Duration::from_millis(num(ms)?))
        }
        ["tcp-hold", addr, port, seconds] => {
            flow::tcp_hold(ip(addr)?, num(port)?, Duration::from_secs_f64(num(seconds)?))
        }
        ["udp-new", addr, seconds] => flow::udp_new(ip(addr)?, Duration::from_secs_f64(num(seconds)?)),
        ["spoof-udp", source, addr, port, count] => forge::udp(ip(source)?, ip(addr)?, num(port)?, num(count)?),
        ["frame", device, src, dst, source, addr, port, count] => {
            forge::frame(device, mac(src)?, mac(dst)?, ip(source)?, ip(addr)?, num(port)?, num(count)?)
        }
        ["send", device, count, frames @ ..] => forge::send(device, num(count)?, frames),
        ["arp", device, src, sender, target, count] => {
            forge::arp(device, mac(src)?, ip(sender)?, ip(target)?, num(count)?)
        }
        _ => Err(USAGE.into()),
    }
}

fn ip(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text} is no IP address"))
}

fn num<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is no number that fits here"))
}

fn mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| format!("{text} is no MAC address"))
}
