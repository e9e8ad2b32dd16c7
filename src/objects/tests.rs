//! A directory keeps the promises of every destination.

use bytes::Bytes;
use futures_util::TryStreamExt as _;

use super::{Objects, Trouble};
use crate::config::{Config, Destination};

fn objects(directory: &std::path::Path) -> Objects {
    Objects::open(&Destination::Directory(directory.to_path_buf()), &Config::default()).unwrap()
}

#[tokio::test]
async fn an_object_is_created_once() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(directory.path());
    objects.create("a/b.json", Bytes::from_static(b"one")).await.unwrap();
    assert_eq!(objects.create("a/b.json", Bytes::from_static(b"two")).await, Err(Trouble::Exists));
    let (bytes, _) = objects.get("a/b.json", 3).await.unwrap();
    assert_eq!(bytes, "one");
    assert_eq!(objects.get("a/b.json", 2).await, Err(Trouble::TooLarge(2)));
    assert_eq!(objects.get("a/c.json", 2).await, Err(Trouble::Absent));
}

#[tokio::test]
async fn only_the_version_that_was_read_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(directory.path());
    let first = objects.replace("shard", Bytes::from_static(b"one"), None).await.unwrap();
    assert_eq!(objects.replace("shard", Bytes::from_static(b"two"), None).await, Err(Trouble::Changed));
    let second = objects.replace("shard", Bytes::from_static(b"three"), Some(first.clone())).await.unwrap();
    let stale = objects.replace("shard", Bytes::from_static(b"four"), Some(first)).await;
    assert_eq!(stale, Err(Trouble::Changed));
    assert_eq!(objects.get("shard", 99).await.unwrap(), (Bytes::from_static(b"three"), second));
}

#[tokio::test]
async fn an_upload_is_seen_when_it_is_finished_and_never_before() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(directory.path());
    let part = Bytes::from(vec![7; 5 << 20]);
    let mut upload = objects.upload("dumps/one").await.unwrap();
    for _ in 0..5 {
        upload.write(part.clone()).await.unwrap();
    }
    assert!(objects.list("dumps/").await.unwrap().is_empty());
    upload.finish().await.unwrap();
    let mut dropped = objects.upload("dumps/two").await.unwrap();
    dropped.write(part.clone()).await.unwrap();
    dropped.abort().await.unwrap();
    let found = objects.list("dumps/").await.unwrap();
    assert_eq!(
        found.iter().map(|found| (found.name.as_str(), found.size)).collect::<Vec<_>>(),
        [("dumps/one", 25 << 20)]
    );
    let (size, stream) = objects.read("dumps/one", Some(3..10)).await.unwrap();
    let read: Vec<Bytes> = stream.try_collect().await.unwrap();
    assert_eq!((size, read.concat()), (25 << 20, vec![7; 7]));
    objects.delete("dumps/one").await.unwrap();
    objects.delete("dumps/one").await.unwrap();
    assert!(objects.list("").await.unwrap().is_empty());
}

#[tokio::test]
async fn a_folder_goes_with_what_was_never_finished() {
    let directory = tempfile::tempdir().unwrap();
    let objects = objects(directory.path());
    assert!(objects.folders("dumps").await.unwrap().is_empty());
    objects.create("dumps/one/manifest.json", Bytes::from_static(b"{}")).await.unwrap();
    let mut killed = objects.upload("dumps/two/dump").await.unwrap();
    killed.write(Bytes::from(vec![7; 20 << 20])).await.unwrap();
    assert!(objects.list("dumps/two").await.unwrap().is_empty());
    assert_eq!(objects.folders("dumps").await.unwrap(), ["one", "two"]);
    // What a killed process leaves is the file, which nobody takes away when it is dropped.
    std::fs::write(directory.path().join("dumps/two/dump#9"), b"left").unwrap();
    drop(killed);
    objects.clear("dumps/two").await.unwrap();
    objects.clear("dumps/two").await.unwrap();
    assert!(!directory.path().join("dumps/two").exists());
    assert_eq!(objects.folders("dumps").await.unwrap(), ["one"]);
}
