//! The transport of nf_tables over nfnetlink: one batch is one transaction.
//!
//! netlink-proto sends one message in one datagram, and a batch has to be one datagram from `NFNL_MSG_BATCH_BEGIN` to
//! `NFNL_MSG_BATCH_END`; so this socket is driven directly. Framing is netlink-packet-core's, and so is the walk over
//! what comes back: netlink-packet-netfilter 0.4 formats the whole message for an error text at each attribute that it
//! parses, error or not, which cost 12 ms in a hook that has 1.5.

use std::io;

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkDeserializable,
    NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::libc;

use super::KernelError;
use crate::model::objects::TableFamily;

const DUMP_TRIES: usize = 20;

/// `NFNL_SUBSYS_NFTABLES`, carried by a batch's begin and end (linux/netfilter/nfnetlink.h).
const NFTABLES: u16 = 10;

/// A message of a batch, with its flags beyond `NLM_F_REQUEST`.
pub struct Request {
    pub family: TableFamily,
    pub message: NfTablesMessage,
    pub flags: u16,
}

/// Room for one datagram: the kernel fills up to 32 KiB when it is offered (netlink_dump, net/netlink/af_netlink.c).
const BUFFER: usize = 64 * 1024;

/// `struct nfgenmsg`: family, version, resource id.
const NFGENMSG_LEN: usize = 4;

/// An answer's attributes, as they came.
pub struct Answer(Vec<u8>);

impl Answer {
    /// The bytes after the nfgenmsg: attributes, for [`netlink_packet_core::NlasIterator`].
    pub fn attributes(&self) -> &[u8] {
        self.0.get(NFGENMSG_LEN..).unwrap_or_default()
    }
}

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;
    fn deserialize(_header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        Ok(Self(payload.to_vec()))
    }
}

/// An nfnetlink connection to the namespace of the thread that opened it.
pub struct Nfnl {
    socket: Socket,
    sequence: u32,
}

impl Nfnl {
    pub fn open() -> Result<Self, KernelError> {
        let failed = |error| KernelError::io("opening an nfnetlink socket", error);
        let mut socket = Socket::new(NETLINK_NETFILTER).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        socket.set_ext_ack(true).map_err(failed)?;
        socket.set_cap_ack(true).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence += 1;
        self.sequence
    }

    /// Carries out all of `requests` or none of them; nothing to carry out is no error.
    pub fn commit(&mut self, request: &str, requests: Vec<Request>) -> Result<(), KernelError> {
        if requests.is_empty() {
            return Ok(());
        }
        let mut datagram = Vec::with_capacity(4096);
        self.boundary(&mut datagram, libc::NFNL_MSG_BATCH_BEGIN);
        let first = self.sequence;
        let last = requests.len().checked_sub(1);
        for (place, Request { family, message, flags }) in requests.into_iter().enumerate() {
            // Errors are always answered; one acknowledgement, of the last, says that the batch was committed.
            let acknowledge = if Some(place) == last { NLM_F_ACK } else { 0 };
            let message = self.framed(family, message, flags | acknowledge);
            append(&mut datagram, &message);
        }
        let acknowledged = self.sequence;
        self.boundary(&mut datagram, libc::NFNL_MSG_BATCH_END);
        self.send(request, &datagram)?;

        // The kernel queues every error of the batch, then the acknowledgement; it commits before it answers.
        let mut failure = None;
        loop {
            for answer in self.receive(request)? {
                if answer.header.sequence_number < first {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        failure.get_or_insert_with(|| KernelError::nack(request, &error));
                    }
                    NetlinkPayload::Error(_) if answer.header.sequence_number == acknowledged => {
                        return failure.map_or(Ok(()), Err);
                    }
                    _ => {}
                }
            }
            // An aborted batch acknowledges nothing.
            if let Some(failure) = failure {
                return Err(failure);
            }
        }
    }

    /// Reads a list, again if it changed meanwhile.
    pub fn list(
        &mut self,
        request: &str,
        family: TableFamily,
        message: &NfTablesMessage,
    ) -> Result<Vec<Answer>, KernelError> {
        for _ in 0..DUMP_TRIES {
            if let Some(whole) = self.exchange(request, family, message.clone(), NLM_F_DUMP)? {
                return Ok(whole);
            }
        }
        Err(KernelError::Restless { request: request.to_owned() })
    }

    /// Asks for one object.
    pub fn get(
        &mut self,
        request: &str,
        family: TableFamily,
        message: NfTablesMessage,
    ) -> Result<Vec<Answer>, KernelError> {
        self.exchange(request, family, message, NLM_F_ACK).map(Option::unwrap_or_default)
    }

    fn exchange(
        &mut self,
        request: &str,
        family: TableFamily,
        message: NfTablesMessage,
        flags: u16,
    ) -> Result<Option<Vec<Answer>>, KernelError> {
        let mut datagram = Vec::with_capacity(256);
        let message = self.framed(family, message, flags);
        append(&mut datagram, &message);
        self.send(request, &datagram)?;
        let (mut gathered, mut interrupted) = (Vec::new(), false);
        loop {
            for answer in self.receive(request)? {
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
                    _ => {}
                }
            }
        }
    }

    fn framed(
        &mut self,
        family: TableFamily,
        message: NfTablesMessage,
        flags: u16,
    ) -> NetlinkMessage<NetfilterMessage> {
        let family = match family {
            TableFamily::Inet => NetfilterProtoFamily::Inet,
            TableFamily::Bridge => NetfilterProtoFamily::Bridge,
        };
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.next_sequence();
        let mut framed =
            NetlinkMessage::new(header, NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message).into());
        framed.finalize();
        framed
    }

    /// Begin or end: a bare nfgenmsg whose res_id is the subsystem (`struct nfgenmsg`, linux/netfilter/nfnetlink.h).
    fn boundary(&mut self, datagram: &mut Vec<u8>, kind: libc::c_int) {
        let genmsg = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(header.buffer_len() + genmsg.buffer_len()).unwrap_or(20);
        header.message_type = u16::try_from(kind).unwrap_or_default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.next_sequence();
        let start = datagram.len();
        datagram.resize(start + header.buffer_len() + genmsg.buffer_len(), 0);
        header.emit(&mut datagram[start..]);
        genmsg.emit(&mut datagram[start + header.buffer_len()..]);
    }

    fn send(&self, request: &str, datagram: &[u8]) -> Result<(), KernelError> {
        let sent = self.socket.send(datagram, 0).map_err(|error| KernelError::io(request, error))?;
        if sent == datagram.len() {
            return Ok(());
        }
        Err(KernelError::io(request, io::Error::new(io::ErrorKind::WriteZero, "the message was cut short")))
    }

    fn receive(&self, request: &str) -> Result<Vec<NetlinkMessage<Answer>>, KernelError> {
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

/// Messages in a datagram start at multiples of 4 bytes (`NLMSG_ALIGNTO`).
fn append(datagram: &mut Vec<u8>, message: &NetlinkMessage<NetfilterMessage>) {
    let start = datagram.len();
    datagram.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut datagram[start..]);
}
