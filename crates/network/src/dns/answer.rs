//! What to do with a query: pure, given the table of names.

use std::net::Ipv4Addr;

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, PTR, SOA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use ipnet::Ipv4Net;

use super::NameTable;

/// How long a guest may remember an answer of ours, in seconds: names move with instances.
const TTL: u32 = 5;

/// What becomes of a query.
#[derive(Debug)]
pub(super) enum Decision {
    /// This is the answer.
    Answer(Box<Message>),
    /// Not ours: ask upstream.
    Forward,
    /// Not a query; no answer at all, so that two servers cannot talk to each other for ever.
    Ignore,
}

/// Decides. Names without a dot and names in our domain are ours, also when nobody has them: they must not be
/// told to servers outside.
pub(super) fn decide(query: &Message, names: &NameTable, subnet: Ipv4Net) -> Decision {
    if query.metadata.message_type != MessageType::Query {
        return Decision::Ignore;
    }
    if query.metadata.op_code != OpCode::Query {
        return answer(query, ResponseCode::NotImp, |_| {});
    }
    let [question] = query.queries.as_slice() else {
        return answer(query, ResponseCode::FormErr, |_| {});
    };
    let text = question.name().to_ascii().to_ascii_lowercase();
    let text = text.trim_end_matches('.');
    if question.query_class() != DNSClass::IN {
        return Decision::Forward;
    }
    if let Some(address) = reverse(text).filter(|address| subnet.contains(address)) {
        let found = names.name(address);
        return with_record(query, names, found.is_some(), |name| {
            let full = Name::from_ascii(format!("{}.{}.", found?, names.domain())).ok()?;
            wants(question.query_type(), RecordType::PTR)
                .then(|| Record::from_rdata(name, TTL, RData::PTR(PTR(full))))
        });
    }
    let suffix = format!(".{}", names.domain());
    let label = match text.strip_suffix(&suffix) {
        Some(label) => label,
        None if text == names.domain() => return with_record(query, names, true, |_| None),
        None if !text.is_empty() && !text.contains('.') => text,
        None => return Decision::Forward,
    };
    let found = names.address(label);
    with_record(query, names, found.is_some(), |name| {
        let address = found?;
        wants(question.query_type(), RecordType::A)
            .then(|| Record::from_rdata(name, TTL, RData::A(A(address))))
    })
}

/// The answer that says that something of ours went wrong.
pub(super) fn failure(query: &Message) -> Message {
    response(query, ResponseCode::ServFail)
}

fn wants(asked: RecordType, has: RecordType) -> bool {
    asked == has || asked == RecordType::ANY
}

fn with_record(
    query: &Message,
    names: &NameTable,
    exists: bool,
    record: impl FnOnce(Name) -> Option<Record>,
) -> Decision {
    let code = if exists {
        ResponseCode::NoError
    } else {
        ResponseCode::NXDomain
    };
    answer(query, code, |message| {
        message.metadata.authoritative = true;
        let name = query
            .queries
            .first()
            .map(|question| question.name().clone())
            .unwrap_or_default();
        match record(name) {
            Some(record) => {
                message.add_answer(record);
            }
            // A negative answer is remembered for as long as the SOA says (RFC 2308).
            None => {
                message.add_authorities(authority(names));
            }
        }
    })
}

fn authority(names: &NameTable) -> Option<Record> {
    let zone = Name::from_ascii(format!("{}.", names.domain())).ok()?;
    let contact = Name::from_ascii(format!("hostmaster.{}.", names.domain())).ok()?;
    let soa = SOA::new(zone.clone(), contact, 1, 3600, 600, 86_400, TTL);
    Some(Record::from_rdata(zone, TTL, RData::SOA(soa)))
}

fn answer(query: &Message, code: ResponseCode, fill: impl FnOnce(&mut Message)) -> Decision {
    let mut message = response(query, code);
    fill(&mut message);
    Decision::Answer(Box::new(message))
}

fn response(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::response(query.metadata.id, query.metadata.op_code);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.queries.clone_from(&query.queries);
    message
}

/// The address in `4.3.2.1.in-addr.arpa`.
fn reverse(name: &str) -> Option<Ipv4Addr> {
    let digits = name.strip_suffix(".in-addr.arpa")?;
    let mut octets = [0_u8; 4];
    let mut parts = digits.split('.');
    for octet in octets.iter_mut().rev() {
        *octet = parts.next()?.parse().ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a panic is the failure")]
    use hickory_proto::op::Query;

    use super::*;

    fn table() -> NameTable {
        let table = NameTable::new("warren.internal");
        let handle = "abcdefgh".parse().unwrap();
        table.set(
            &handle,
            &["Web".into(), "web-2".into()],
            [10, 0, 0, 5].into(),
        );
        table
    }

    fn ask(name: &str, kind: RecordType) -> Decision {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        decide(&query, &table(), "10.0.0.0/24".parse().unwrap())
    }

    fn code_and_data(decision: Decision) -> (ResponseCode, Vec<String>) {
        match decision {
            Decision::Answer(message) => (
                message.metadata.response_code,
                message
                    .answers
                    .iter()
                    .map(|record| record.data.to_string())
                    .collect(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn instances_are_found_by_label_and_full_name_in_any_case() {
        for name in [
            "web.",
            "WEB.",
            "web.warren.internal.",
            "web-2.Warren.Internal.",
        ] {
            let (code, data) = code_and_data(ask(name, RecordType::A));
            assert_eq!(code, ResponseCode::NoError, "{name}");
            assert_eq!(data, ["10.0.0.5"], "{name}");
        }
        let (code, data) = code_and_data(ask("5.0.0.10.in-addr.arpa.", RecordType::PTR));
        assert_eq!(
            (code, data),
            (ResponseCode::NoError, vec!["web.warren.internal.".into()])
        );
    }

    #[test]
    fn a_known_name_without_that_record_is_empty_and_an_unknown_one_does_not_exist() {
        let (code, data) = code_and_data(ask("web.", RecordType::AAAA));
        assert_eq!((code, data.len()), (ResponseCode::NoError, 0));
        for name in [
            "nobody.",
            "nobody.warren.internal.",
            "a.web.warren.internal.",
        ] {
            let (code, _) = code_and_data(ask(name, RecordType::A));
            assert_eq!(code, ResponseCode::NXDomain, "{name}");
        }
    }

    #[test]
    fn other_names_are_passed_on_and_answers_are_ignored() {
        for name in ["example.com.", "5.0.0.11.in-addr.arpa.", "."] {
            assert!(
                matches!(ask(name, RecordType::A), Decision::Forward),
                "{name}"
            );
        }
        let mut answer = Message::response(1, OpCode::Query);
        answer.add_query(Query::query(Name::root(), RecordType::A));
        let decision = decide(&answer, &table(), "10.0.0.0/24".parse().unwrap());
        assert!(matches!(decision, Decision::Ignore));
    }

    #[test]
    fn names_go_with_their_instance() {
        let table = table();
        let handle = "abcdefgh".parse().unwrap();
        table.set(&handle, &["other".into()], [10, 0, 0, 6].into());
        assert_eq!(table.address("web"), None);
        assert_eq!(table.address("other"), Some([10, 0, 0, 6].into()));
        table.remove(&handle);
        assert_eq!(table.address("other"), None);
        assert_eq!(table.name([10, 0, 0, 6].into()), None);
    }
}
