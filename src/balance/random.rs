//! `random` and `random two`: a server by chance, and the less loaded of two.
//!
//! Nothing is shared and nothing is remembered, so the cost is that of a search by weight.
#![forbid(unsafe_code)]

use super::Rotation;

/// Draws before the caller goes on with the rotation; about as many as nginx makes.
const DRAWS: usize = 20;

/// Draws servers by weight until `take` accepts one; none after 20 draws.
///
/// `number` gives random numbers from all of 64 bits.
pub fn one(
    rotation: &Rotation,
    number: &mut impl FnMut() -> u64,
    mut take: impl FnMut(u32) -> bool,
) -> Option<u32> {
    (0..DRAWS).filter_map(|_| rotation.at(number())).find(|&server| take(server))
}

/// Draws two different servers by weight and takes the one with less load; none after 20 draws.
///
/// `may` tells, without effect, whether this request could have a server now; `load` gives a
/// server's load and its weight, which it is divided by. If the less loaded is not to be had, the
/// other is asked, and then two more are drawn. If only one was found in all draws, it is asked.
pub fn two(
    rotation: &Rotation,
    number: &mut impl FnMut() -> u64,
    may: impl Fn(u32) -> bool,
    load: impl Fn(u32) -> (u64, u32),
    mut take: impl FnMut(u32) -> bool,
) -> Option<u32> {
    let mut waiting = None;
    for _ in 0..DRAWS {
        let drawn = rotation.at(number())?;
        if waiting == Some(drawn) || !may(drawn) {
            continue;
        }
        let Some(first) = waiting.take() else {
            waiting = Some(drawn);
            continue;
        };
        // nginx takes the second of two with equal load; but only the first is drawn by weight,
        // as the second must be another.
        let (better, other) =
            if is_less(load(drawn), load(first)) { (drawn, first) } else { (first, drawn) };
        if let Some(server) = [better, other].into_iter().find(|&server| take(server)) {
            return Some(server);
        }
    }
    waiting.filter(|&server| take(server))
}

/// Whether the first load is less for its weight than the second.
fn is_less((load, weight): (u64, u32), (than, of): (u64, u32)) -> bool {
    u128::from(load) * u128::from(of) < u128::from(than) * u128::from(weight)
}

#[cfg(test)]
mod tests;
