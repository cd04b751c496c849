//! One netlink connection, for rtnetlink and nfnetlink alike: requests, lists, answers. Blocking: a hook has nothing
//! else to do meanwhile.
//!
//! Framing is netlink-packet-core's, sockets are netlink-sys'. The kernel answers a request at once (the answer is
//! queued before `send` returns), so nothing here can wait for ever.

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};

use super::KernelError;

/// How often a list is read again when the kernel says that it changed meanwhile (`NLM_F_DUMP_INTR`).
const DUMP_TRIES: usize = 20;

/// Room for one datagram: the kernel fills up to 32 KiB when it is offered (netlink_dump, net/netlink/af_netlink.c).
const BUFFER: usize = 64 * 1024;

/// A connection to the network namespace that the thread was in when it opened it; any thread may use it then.
pub struct Connection {
    socket: Socket,
    sequence: u32,
}

impl Connection {
    /// `protocol` is one of `NETLINK_*` (linux/netlink.h).
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Makes the kernel filter lists itself and refuse what it does not know, instead of answering something else.
    pub fn be_strict(&self) -> io::Result<()> {
        self.socket.set_netlink_get_strict_chk(true)
    }

    pub fn next_sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// Puts a header before a message and both behind what `datagram` holds.
    pub fn append<M: NetlinkSerializable>(&mut self, datagram: &mut Vec<u8>, message: M, flags: u16) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.next_sequence();
        let mut framed = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        framed.finalize();
        let start = datagram.len();
        // Messages in a datagram start at multiples of 4 bytes (`NLMSG_ALIGNTO`).
        datagram.resize(start + framed.buffer_len().next_multiple_of(4), 0);
        framed.serialize(&mut datagram[start..]);
    }

    /// A whole list, read again if it changed meanwhile.
    pub fn list<M, A>(&mut self, request: &str, message: &M) -> Result<Vec<A>, KernelError>
    where
        M: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        for _ in 0..DUMP_TRIES {
            if let Some(whole) = self.exchange(request, message.clone(), NLM_F_DUMP)? {
                return Ok(whole);
            }
        }
        Err(KernelError::Restless { request: request.to_owned() })
    }

    /// Asks for one thing, or changes one; `flags` beyond `NLM_F_REQUEST`. The answers before the acknowledgement.
    pub fn ask<M, A>(&mut self, request: &str, message: M, flags: u16) -> Result<Vec<A>, KernelError>
    where
        M: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        self.exchange(request, message, NLM_F_ACK | flags).map(Option::unwrap_or_default)
    }

    /// Asks for several things in one datagram; an answer or a refusal for each, in their order.
    pub fn ask_each<M, A>(
        &mut self,
        request: &str,
        messages: Vec<M>,
    ) -> Result<Vec<Result<Vec<A>, KernelError>>, KernelError>
    where
        M: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        let mut results: Vec<Result<Vec<A>, KernelError>> = messages.iter().map(|_| Ok(Vec::new())).collect();
        let mut open = results.len();
        let first = self.sequence + 1;
        let mut datagram = Vec::with_capacity(1024);
        for message in messages {
            self.append(&mut datagram, message, NLM_F_ACK);
        }
        if open > 0 {
            self.send(request, &datagram)?;
        }
        while open > 0 {
            for answer in self.receive(request)? {
                let place =
                    answer.header.sequence_number.checked_sub(first).and_then(|place| usize::try_from(place).ok());
                let Some(result) = place.and_then(|place| results.get_mut(place)) else { continue };
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => {
                        if let Ok(answers) = result {
                            answers.push(message);
                        }
                    }
                    NetlinkPayload::Error(error) => {
                        open -= 1;
                        if error.code.is_some() {
                            *result = Err(KernelError::nack(request, &error));
                        }
                    }
                    _ => {}
                }
            }
        }
        Ok(results)
    }

    /// `None`: a list that was interrupted.
    fn exchange<M, A>(&mut self, request: &str, message: M, flags: u16) -> Result<Option<Vec<A>>, KernelError>
    where
        M: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        let mut datagram = Vec::with_capacity(256);
        self.append(&mut datagram, message, flags);
        self.send(request, &datagram)?;
        let (mut gathered, mut interrupted) = (Vec::new(), false);
        loop {
            for answer in self.receive(request)? {
                // What is left of an earlier exchange is nobody's.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= answer.header.flags & NLM_F_DUMP_INTR != 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => gathered.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(KernelError::nack(request, &error));
                    }
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => {
                        return Ok((!interrupted).then_some(gathered));
                    }
                    NetlinkPayload::Overrun(_) => return Err(KernelError::answer(request, "overrun")),
                    _ => {}
                }
            }
        }
    }

    pub fn send(&self, request: &str, datagram: &[u8]) -> Result<(), KernelError> {
        let sent = self.socket.send(datagram, 0).map_err(|error| KernelError::io(request, error))?;
        if sent == datagram.len() {
            return Ok(());
        }
        Err(KernelError::io(request, io::Error::new(io::ErrorKind::WriteZero, "the message was cut short")))
    }

    /// One datagram's messages.
    pub fn receive<A: NetlinkDeserializable>(&self, request: &str) -> Result<Vec<NetlinkMessage<A>>, KernelError> {
        let mut datagram = Vec::with_capacity(BUFFER);
        self.socket.recv(&mut datagram, 0).map_err(|error| KernelError::io(request, error))?;
        let mut messages = Vec::new();
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let not_understood = |error| KernelError::answer(request, error);
            let length = NetlinkBuffer::new_checked(rest).map_err(not_understood)?.length() as usize;
            messages.push(NetlinkMessage::deserialize(rest).map_err(not_understood)?);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(messages)
    }
}
