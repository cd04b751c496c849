//! nf_tables' tongue over netlink: one batch is one transaction.
//!
//! What is sent is made of netlink-packet-netfilter's types. What comes back is walked as plain attributes: that crate
//! (0.4) formats the whole message for an error text at each attribute that it parses, error or not, which cost 10 ms
//! in a hook that has 2.

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkPayload, NlasIterator,
};
use netlink_packet_netfilter::nftables::NfTablesMessage;
use netlink_packet_netfilter::{NetfilterHeader, NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::libc;

use super::KernelError;
use super::netlink::Connection;
use crate::model::objects::TableFamily;

/// `NFNL_SUBSYS_NFTABLES`, carried by a batch's begin and end (linux/netfilter/nfnetlink.h).
const NFTABLES: u16 = 10;

/// `struct nfgenmsg`: family, version, resource id.
const NFGENMSG_LEN: usize = 4;

/// A message of a batch, with its flags beyond `NLM_F_REQUEST`.
pub struct Request {
    pub family: TableFamily,
    pub message: NfTablesMessage,
    pub flags: u16,
}

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
pub struct Nfnl(Connection);

impl Nfnl {
    pub fn open() -> Result<Self, KernelError> {
        Connection::open(NETLINK_NETFILTER)
            .map(Self)
            .map_err(|error| KernelError::io("opening an nfnetlink socket", error))
    }

    /// Carries out all of `requests` or none of them; nothing to carry out is no error.
    pub fn commit(&mut self, request: &str, requests: Vec<Request>) -> Result<(), KernelError> {
        let Some(last) = requests.len().checked_sub(1) else { return Ok(()) };
        let mut datagram = Vec::with_capacity(4096);
        let first = self.boundary(&mut datagram, libc::NFNL_MSG_BATCH_BEGIN);
        for (place, Request { family, message, flags }) in requests.into_iter().enumerate() {
            // Errors are always answered; one acknowledgement, of the last, says that the batch was committed.
            let acknowledge = if place == last { NLM_F_ACK } else { 0 };
            self.0.append(&mut datagram, framed(family, message), flags | acknowledge);
        }
        let acknowledged = self.boundary(&mut datagram, libc::NFNL_MSG_BATCH_END) - 1;
        self.0.send(request, &datagram)?;

        // The kernel commits or aborts before it answers: every error of the batch in turn, then the acknowledgement.
        loop {
            for answer in self.0.receive::<Answer>(request)? {
                if answer.header.sequence_number < first {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Error(error) if error.code.is_some() => {
                        return Err(KernelError::nack(request, &error));
                    }
                    NetlinkPayload::Error(_) if answer.header.sequence_number == acknowledged => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// Reads a list.
    pub fn list(
        &mut self,
        request: &str,
        family: TableFamily,
        message: NfTablesMessage,
    ) -> Result<Vec<Answer>, KernelError> {
        self.0.list(request, &framed(family, message))
    }

    /// Asks for several objects at once; an answer or a refusal for each, in their order.
    pub fn get_each(
        &mut self,
        request: &str,
        messages: Vec<(TableFamily, NfTablesMessage)>,
    ) -> Result<Vec<Result<Vec<Answer>, KernelError>>, KernelError> {
        let framed = messages.into_iter().map(|(family, message)| framed(family, message)).collect();
        self.0.ask_each(request, framed)
    }

    /// Begin or end: a bare nfgenmsg whose res_id is the subsystem. Returns its sequence number.
    fn boundary(&mut self, datagram: &mut Vec<u8>, kind: libc::c_int) -> u32 {
        let genmsg = NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, NFTABLES);
        let mut header = NetlinkHeader::default();
        let length = header.buffer_len() + genmsg.buffer_len();
        header.length = u32::try_from(length).unwrap_or_default();
        header.message_type = u16::try_from(kind).unwrap_or_default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.0.next_sequence();
        let start = datagram.len();
        datagram.resize(start + length, 0);
        header.emit(&mut datagram[start..]);
        genmsg.emit(&mut datagram[start + header.buffer_len()..]);
        header.sequence_number
    }
}

fn framed(family: TableFamily, message: NfTablesMessage) -> NetfilterMessage {
    let family = match family {
        TableFamily::Inet => NetfilterProtoFamily::Inet,
        TableFamily::Bridge => NetfilterProtoFamily::Bridge,
    };
    NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message)
}

/// The values of the attributes of this kind.
pub(super) fn values(attributes: &[u8], kind: u16) -> impl Iterator<Item = &[u8]> {
    NlasIterator::new(attributes).flatten().filter(move |attribute| attribute.kind() == kind).map(|attribute| {
        // `value()` borrows from the attribute; its buffer outlives that.
        const HEADER_LEN: usize = 4;
        let end = HEADER_LEN + attribute.value_length();
        attribute.into_inner().get(HEADER_LEN..end).unwrap_or_default()
    })
}
