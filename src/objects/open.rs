//! How a destination is opened: where it is, and with which credentials. They are read here and given to nobody else.

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};

use super::{Objects, Trouble};
use crate::config::{self, Bucket, Config, Destination};
use crate::durable;

/// How long connecting, and how long one request, may take.
const CONNECT: Duration = Duration::from_secs(5);
const REQUEST: Duration = Duration::from_secs(60);
/// How long a request that fails is repeated.
const RETRY: Duration = Duration::from_secs(30);
const RETRIES: usize = 4;

/// What the lock of a directory is called.
pub(super) const LOCK: &str = ".lock";

/// What a file of `s3.credentials_file` holds.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct S3Credentials {
    access_key_id: String,
    secret_access_key: zeroize::Zeroizing<String>,
}

impl Objects {
    /// Opens a destination. A directory that is not there yet is made; nothing is written, and no store is asked.
    ///
    /// # Errors
    /// Says which key of the configuration, or which variable, is wrong.
    pub fn open(destination: &Destination, config: &Config) -> Result<Self, Trouble> {
        let url = destination.to_string();
        match destination {
            Destination::Directory(path) => {
                let away = |error: std::io::Error| Trouble::Away(format!("{url}: {error}"));
                durable::create_directory(path, 0o700).map_err(away)?;
                let store = LocalFileSystem::new_with_prefix(path).map_err(super::trouble)?.with_fsync(true);
                Ok(Self {
                    store: Arc::new(store),
                    prefix: Path::default(),
                    url,
                    directory: Some(path.clone()),
                })
            }
            Destination::S3(bucket) => {
                let store = s3(bucket, &config.s3)?;
                Ok(Self {
                    store: Arc::new(store),
                    prefix: Path::from(bucket.prefix.as_str()),
                    url,
                    directory: None,
                })
            }
            Destination::Gs(bucket) => {
                let store = gs(bucket, &config.gs)?;
                Ok(Self {
                    store: Arc::new(store),
                    prefix: Path::from(bucket.prefix.as_str()),
                    url,
                    directory: None,
                })
            }
        }
    }
}

fn s3(bucket: &Bucket, settings: &config::S3) -> Result<object_store::aws::AmazonS3, Trouble> {
    let mut builder = AmazonS3Builder::new();
    for (name, value) in config::of_object_stores() {
        // What belongs to other programs of the same cloud is not ours to judge.
        if let Ok(key) = name.to_ascii_lowercase().parse::<AmazonS3ConfigKey>()
            && name.starts_with("AWS_")
        {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(region) = &settings.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    if let Some(file) = &settings.credentials_file {
        let credentials = credentials(file)?;
        builder = builder
            .with_access_key_id(credentials.access_key_id.as_str())
            .with_secret_access_key(credentials.secret_access_key.as_str());
    }
    let endpoint = builder.get_config_value(&AmazonS3ConfigKey::Endpoint);
    builder
        .with_bucket_name(&bucket.name)
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        // A bucket with object lock takes nothing without a digest.
        .with_checksum_algorithm(Checksum::SHA256)
        .with_client_options(options(endpoint.as_deref())?)
        .with_retry(retry())
        .build()
        .map_err(super::trouble)
}

fn gs(bucket: &Bucket, settings: &config::Gs) -> Result<object_store::gcp::GoogleCloudStorage, Trouble> {
    let mut builder = GoogleCloudStorageBuilder::new();
    for (name, value) in config::of_object_stores() {
        if let Ok(key) = name.to_ascii_lowercase().parse::<GoogleConfigKey>()
            && name.starts_with("GOOGLE_")
        {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(endpoint) = &settings.endpoint {
        builder = builder.with_base_url(endpoint);
    }
    if let Some(file) = &settings.credentials_file {
        let key =
            config::secret(file).map_err(|error| Trouble::Away(format!("gs.credentials_file: {error}")))?;
        builder = builder.with_service_account_key(key.as_str());
    }
    let endpoint = builder.get_config_value(&GoogleConfigKey::BaseUrl);
    builder
        .with_bucket_name(&bucket.name)
        .with_client_options(options(endpoint.as_deref())?)
        .with_retry(retry())
        .build()
        .map_err(super::trouble)
}

/// Nothing goes in clear but to a loopback address, whatever says where the store is.
fn options(endpoint: Option<&str>) -> Result<ClientOptions, Trouble> {
    if let Some(endpoint) = endpoint
        && !config::is_safe(endpoint)
    {
        let form = "must be an https:// URL; http:// is for loopback addresses alone";
        return Err(Trouble::Away(format!("the endpoint of the object store {form}")));
    }
    let in_clear = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let options = ClientOptions::new().with_allow_http(in_clear);
    Ok(options.with_connect_timeout(CONNECT).with_timeout(REQUEST))
}

fn retry() -> RetryConfig {
    RetryConfig { backoff: BackoffConfig::default(), max_retries: RETRIES, retry_timeout: RETRY }
}

fn credentials(file: &config::SecretFile) -> Result<S3Credentials, Trouble> {
    let text =
        config::secret(file).map_err(|error| Trouble::Away(format!("s3.credentials_file: {error}")))?;
    toml::from_str(&text).map_err(|_| {
        let form = "must have two lines: access_key_id = \"...\" and secret_access_key = \"...\"";
        Trouble::Away(format!("s3.credentials_file: {form}"))
    })
}

/// Waits for the lock of whoever writes there, which a file holds while it is open.
pub(super) fn lock(directory: &FilePath) -> Result<std::fs::File, String> {
    let path = directory.join(LOCK);
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).open(path);
    file.and_then(|file| file.lock().map(|()| file)).map_err(|error| error.to_string())
}
