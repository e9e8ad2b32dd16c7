//! Rules of what is kept: periods, counts, destinations and how they are reached.

use super::{CENTURY, Rules};
use crate::config::{Destination, Period};

const DAY: Period = Period::seconds(24 * 3600);

impl Rules<'_> {
    pub(super) fn keeping(&mut self) {
        let (retention, archive) = (&self.config.retention, &self.config.archive);
        let periods = [
            ("retention.conversations", Some(retention.conversations)),
            ("retention.consents", Some(retention.consents)),
            ("retention.audit_logs", Some(retention.audit_logs)),
            ("retention.requests", Some(retention.requests)),
            ("retention.job_runs", Some(retention.job_runs)),
            ("archive.after", Some(archive.after)),
            ("backup.physical_retention", self.config.backup.physical_retention),
        ];
        for (key, value) in periods {
            if let Some(value) = value
                && !(DAY..=CENTURY).contains(&value)
            {
                self.refuse(key, format!("must be from {DAY} to {CENTURY}, and is {value}"));
            }
        }
        if self.sound(&["retention.audit_logs"]) && archive.after > retention.audit_logs {
            let message = format!(
                "is {}, longer than retention.audit_logs ({}): a month is archived before it goes",
                archive.after, retention.audit_logs
            );
            self.refuse_beside("archive.after", &["retention.audit_logs"], &message);
        }
        self.dumps();
        self.stores();
    }

    fn dumps(&mut self) {
        let backup = &self.config.backup;
        let keep = backup.keep;
        if [keep.daily, keep.weekly, keep.monthly] == [0; 3] {
            self.refuse("backup.keep", "keeps nothing; set daily, weekly or monthly");
        }
        self.server("backup.drill_url", backup.drill_url.as_ref());
        self.secret_path("backup.drill_identity_file", backup.drill_identity_file.as_ref());
        self.secret_path("database.direct_url_file", self.config.database.direct_url_file.as_ref());
        let destinations = [
            ("backup.destination", &backup.destination),
            ("archive.destination", &self.config.archive.destination),
            ("audit.publish", &self.config.audit.publish),
        ];
        if let Some(keyring) = &self.config.keyring.backup {
            for (key, other) in destinations {
                if other.as_ref().is_some_and(|other| overlap(keyring, other)) {
                    let message = format!(
                        "is {keyring}, and {key} is there too; the keyring's backup needs a place of its own, which forgets"
                    );
                    self.refuse("keyring.backup", message);
                }
            }
        }
    }

    fn stores(&mut self) {
        let (s3, gs) = (&self.config.s3, &self.config.gs);
        self.secret_path("s3.credentials_file", s3.credentials_file.as_ref());
        self.secret_path("gs.credentials_file", gs.credentials_file.as_ref());
        for (key, endpoint) in [("s3.endpoint", &s3.endpoint), ("gs.endpoint", &gs.endpoint)] {
            if endpoint.as_deref().is_some_and(|url| !is_safe(url)) {
                self.refuse(key, "must be an https:// URL; http:// is for loopback addresses alone");
            }
        }
    }
}

/// Whether objects of one would lie among those of the other.
fn overlap(one: &Destination, other: &Destination) -> bool {
    let inside = |a: &str, b: &str| {
        a == b || b.is_empty() || a.strip_prefix(b).is_some_and(|rest| rest.starts_with('/'))
    };
    let nested = |a: &str, b: &str| inside(a, b) || inside(b, a);
    match (one, other) {
        (Destination::Directory(a), Destination::Directory(b)) => a.starts_with(b) || b.starts_with(a),
        (Destination::S3(a), Destination::S3(b)) | (Destination::Gs(a), Destination::Gs(b)) => {
            a.name == b.name && nested(&a.prefix, &b.prefix)
        }
        _ => false,
    }
}

/// Whether what is sent to this URL cannot be read on its way: it has TLS, or never leaves the machine.
pub fn is_safe(url: &str) -> bool {
    let Some(rest) = url.strip_prefix("http://") else {
        return url.starts_with("https://") && url.len() > "https://".len();
    };
    let authority = rest.split('/').next().unwrap_or_default();
    let host = match authority.strip_prefix('[') {
        Some(six) => six.split(']').next().unwrap_or_default(),
        None => authority.split(':').next().unwrap_or_default(),
    };
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::{is_safe, overlap};

    #[test]
    fn nothing_goes_in_clear_over_a_network() {
        for safe in
            ["https://s3.example.com", "http://127.0.0.1:9000", "http://[::1]:9000/a", "http://localhost"]
        {
            assert!(is_safe(safe), "{safe}");
        }
        for unsafe_ in
            ["http://s3.example.com", "http://127.0.0.1.example.com", "http://", "https://", "s3", ""]
        {
            assert!(!is_safe(unsafe_), "{unsafe_}");
        }
    }

    #[test]
    fn a_destination_overlaps_with_what_is_in_it() {
        let overlaps = |a: &str, b: &str| overlap(&a.parse().unwrap(), &b.parse().unwrap());
        assert!(overlaps("file:///srv/a", "file:///srv"));
        assert!(overlaps("s3://bucket", "s3://bucket/a"));
        assert!(overlaps("gs://bucket/a/b", "gs://bucket/a"));
        assert!(!overlaps("file:///srv/a", "file:///srv/ab"));
        assert!(!overlaps("s3://bucket/a", "s3://bucket/ab"));
        assert!(!overlaps("s3://bucket", "gs://bucket"));
    }
}
