//! Ways in for `fuzz/`: queries of guests and answers of name servers.

use hickory_proto::op::Message;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

use super::NameTable;
use super::answer::{Decision, decide, failure};
use super::server::fit;
use super::upstream::belongs;

/// What a guest hears over UDP when no name server outside can be reached.
pub fn answer_query(raw: &[u8]) -> Option<Vec<u8>> {
    let table = NameTable::new("warren.internal");
    let handle = "abcdefgh".parse().ok()?;
    table.set(&handle, &["web".into()], Ipv4Addr::new(10, 0, 0, 5));
    let subnet = Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 24).ok()?;
    let query = Message::from_vec(raw).ok()?;
    let answer = match decide(&query, &table, subnet) {
        Decision::Ignore => return None,
        Decision::Answer(message) => message.to_vec().ok()?,
        Decision::Forward => failure(&query).to_vec().ok()?,
    };
    Some(fit(answer, raw))
}

/// Whether a name server's words are taken for the answer to a query that was sent with this id; if so, what of them a
/// guest gets over UDP.
pub fn answer_belongs(answer: &[u8], query: &[u8], id: u16) -> Option<Vec<u8>> {
    let asked = Message::from_vec(query).ok()?;
    belongs(answer, &asked, id).then(|| fit(answer.to_vec(), query))
}
