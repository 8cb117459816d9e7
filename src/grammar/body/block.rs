//! The file that keeps the list of one upstream: an `upstream` block. nginx's `include` reads it, too,
//! but refuses one of no servers, of backup servers alone, with a weight of 0, or with a word of more
//! than 4 KiB.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::checks::Checks;
use super::reader::Reader;
use super::refusal::{Reason, Refusal};
use super::{ADDRESS, choice, parameters, target};
use crate::grammar::server::{self, Line};
use crate::grammar::{check, method};
use crate::model::body::Target;
use crate::model::{Endpoint, List, Name, Parameters, Peer};

const STATEMENT_OR_END: &str = "\"server\", a method, \"check\" or \"}\"";

/// A whole `upstream` block with the method and the checks that the list came with, if there are
/// any, and the parameters as they are; one of no servers and none of these is empty.
pub fn render_upstream(name: &str, list: &List) -> String {
    let method = list.method().map(|method| format!("    {method};\n")).unwrap_or_default();
    let checks = list.check().map(|check| check::render(check)).unwrap_or_default();
    let checks: String = checks.iter().map(|directive| format!("    {directive};\n")).collect();
    let lines = list.peers().iter().map(|peer| Line::new(&peer.address, peer.parameters));
    format!("upstream {name} {{\n{method}{checks}{}}}\n", server::render("    ", lines))
}

/// Reads one block that [`render_upstream`] wrote, and nothing else beside it. Words and comments
/// are those of [`super::parse`], but a `server` has an address, a method may be one of `upsync_lb`,
/// and the list may be empty or of any length. Parameters that are not there have nginx's defaults;
/// of the same address the first stays.
pub fn parse_upstream(text: &[u8]) -> Result<(Name, List), Refusal> {
    let mut reader = Reader::new(text);
    keyword(&mut reader, "upstream", "\"upstream\"")?;
    let name = name(&mut reader)?;
    keyword(&mut reader, "{", "\"{\"")?;
    let mut peers = Vec::new();
    let mut method = None;
    let mut checks = Checks::default();
    loop {
        let word = reader.expect_token(STATEMENT_OR_END)?;
        match word.text {
            "}" => break,
            "server" => peers.push(peer(&mut reader)?),
            name if name == "upsync_lb" || method::is_method(name) => {
                choice::read(&mut method, &mut reader, &word)?;
            }
            name if check::is_check(name) => checks.read(&mut reader, &word)?,
            _ => return Err(Refusal::unexpected(&word, STATEMENT_OR_END)),
        }
    }
    reader.end("nothing after \"}\"")?;
    let check = checks.finish()?.map(|(_, check)| Arc::new(check));
    let list = List::new(peers).with_method(method.map(|(_, method)| method)).with_check(check);
    Ok((name, list))
}

fn keyword(reader: &mut Reader<'_>, text: &str, expected: &'static str) -> Result<(), Refusal> {
    let word = reader.expect_token(expected)?;
    if word.text == text { Ok(()) } else { Err(Refusal::unexpected(&word, expected)) }
}

fn name(reader: &mut Reader<'_>) -> Result<Name, Refusal> {
    let word = reader.expect("a name")?;
    Name::parse(word.text.as_bytes())
        .map_err(|_| Refusal::of(&word, Reason::Name(word.text.to_owned())))
}

fn peer(reader: &mut Reader<'_>) -> Result<Peer, Refusal> {
    let word = reader.expect(ADDRESS)?;
    let Target::Endpoint(Endpoint::Address(address)) = target(&word)? else {
        return Err(Refusal::of(&word, Reason::NoAddress(word.text.to_owned())));
    };
    Ok(Peer { address, parameters: parameters(reader)?.apply(Parameters::NGINX) })
}
