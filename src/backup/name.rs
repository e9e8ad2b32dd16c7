//! What a dump and its objects are called: `dumps/NAME/dump`, `manifest.json` beside it, and `proof.json` once it was proved.
//!
//! A name begins with the time of its snapshot, to the microsecond, so that names are in the order of time.

use aws_lc_rs::rand;
use chrono::{DateTime, NaiveDateTime, Utc};

use crate::audit::merkle::hex;
use crate::error::{Error, Result};

/// The folder of all dumps.
pub const FOLDER: &str = "dumps";

const TIME: &str = "%Y%m%dT%H%M%S%.6fZ";
/// As names were before: two of one second were in no order.
const TO_THE_SECOND: &str = "%Y%m%dT%H%M%SZ";
/// The longest name that is looked for.
const LONGEST: usize = 64;

/// A name for a dump of this snapshot, which no other dump has.
///
/// # Errors
/// The system's randomness failed.
pub fn of(at: DateTime<Utc>) -> Result<String> {
    let mut random = [0_u8; 4];
    rand::fill(&mut random).map_err(Error::internal)?;
    Ok(format!("{}-{}", at.format(TIME), hex(&random)))
}

/// When the snapshot of a dump of this name was taken, as exactly as the name tells; nothing where it is no name of a dump.
pub fn time(name: &str) -> Option<DateTime<Utc>> {
    let (time, random) = name.split_once('-').filter(|_| name.len() <= LONGEST)?;
    let sound = random.len() == 8 && random.bytes().all(|byte| byte.is_ascii_hexdigit());
    let read = |form: &&str| NaiveDateTime::parse_from_str(time, form).ok();
    // What is written in another way is another name.
    let is_it =
        |at: &NaiveDateTime| [TIME, TO_THE_SECOND].iter().any(|form| at.format(form).to_string() == time);
    [TIME, TO_THE_SECOND].iter().find_map(read).filter(|at| sound && is_it(at)).map(|at| at.and_utc())
}

/// The folder of a dump.
pub fn folder(name: &str) -> String {
    format!("{FOLDER}/{name}")
}

/// The dump itself.
pub fn object(name: &str, encrypted: bool) -> String {
    let ending = if encrypted { ".age" } else { "" };
    format!("{FOLDER}/{name}/dump{ending}")
}

/// What is said of it.
pub fn manifest(name: &str) -> String {
    format!("{FOLDER}/{name}/manifest.json")
}

/// What a drill says of it.
pub fn proof(name: &str) -> String {
    format!("{FOLDER}/{name}/proof.json")
}

#[cfg(test)]
mod tests {
    use chrono::{DateTime, TimeDelta};

    #[test]
    fn a_name_tells_its_time_and_sorts_by_it() {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        let times = [0, 1, 999, 1000, 100_000, 999_999, 1_000_000, 60_000_000]
            .map(|micros| at(1_795_000_000) + TimeDelta::microseconds(micros));
        let names = times.map(|at| super::of(at).unwrap());
        assert_eq!(names.each_ref().map(|name| super::time(name)), times.map(Some), "{names:?}");
        assert!(names.is_sorted(), "{names:?}");
        // As they were before.
        assert_eq!(super::time("20261121T020000Z-12345678"), Some(at(1_795_226_400)));
        for foreign in [
            "",
            "20261121T020000.5Z-12345678",
            "20261121T020000.1234567Z-12345678",
            "x",
            "20261121T020000Z",
            "20261121T020000Z-1",
            "20261121T020000Z-12345678/..",
            "../x-12345678",
        ] {
            assert_eq!(super::time(foreign), None, "{foreign}");
        }
    }
}
