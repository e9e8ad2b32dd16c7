//! Every kind of destination keeps the same promises, on servers that speak its protocol.

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use sidekeep::config::{Config, Destination};
use sidekeep::objects::{Objects, Trouble};

use crate::support::{Passage, Store};

/// The destination as a daemon opens it.
pub fn open(store: &Store) -> Objects {
    let file = store.folder().join("sidekeep.toml");
    std::fs::write(&file, format!("database.url = \"postgresql://u@localhost/d\"\n{}", store.config))
        .unwrap();
    let loaded = sidekeep::config::load(Some(&file)).unwrap_or_else(|problem| panic!("{problem}"));
    let config: Config = loaded.config;
    let destination: Destination = store.url.parse().unwrap();
    Objects::open(&destination, &config).unwrap()
}

fn on_each(test: impl AsyncFn(Store, Objects)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for store in Store::all() {
        eprintln!("{}", store.url);
        let objects = open(&store);
        runtime.block_on(test(store, objects));
    }
}

const fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn an_object_is_created_once() {
    on_each(async |_, objects| {
        objects.create("a/b.json", bytes("one")).await.unwrap();
        assert_eq!(objects.create("a/b.json", bytes("two")).await, Err(Trouble::Exists));
        let (read, _) = objects.get("a/b.json", 3).await.unwrap();
        assert_eq!(read, "one");
        assert_eq!(objects.get("a/b.json", 2).await, Err(Trouble::TooLarge(2)));
        assert_eq!(objects.get("a/c.json", 2).await, Err(Trouble::Absent));
    });
}

#[test]
fn only_the_version_that_was_read_is_replaced() {
    on_each(async |_, objects| {
        let first = objects.replace("shard", bytes("one"), None).await.unwrap();
        assert_eq!(objects.replace("shard", bytes("two"), None).await, Err(Trouble::Changed));
        let second = objects.replace("shard", bytes("three"), Some(first.clone())).await.unwrap();
        assert_eq!(objects.replace("shard", bytes("four"), Some(first)).await, Err(Trouble::Changed));
        let (read, tag) = objects.get("shard", 99).await.unwrap();
        assert_eq!(read, "three");
        objects.replace("shard", bytes("five"), Some(tag)).await.unwrap();
        objects.delete("shard").await.unwrap();
        assert_eq!(objects.replace("shard", bytes("six"), Some(second)).await, Err(Trouble::Changed));
    });
}

#[test]
fn an_upload_is_seen_when_it_is_finished_and_never_before() {
    on_each(async |_, objects| {
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
        let empty = objects.upload("dumps/empty").await.unwrap();
        empty.finish().await.unwrap();
        let found = objects.list("dumps/").await.unwrap();
        let found: Vec<_> = found.iter().map(|found| (found.name.as_str(), found.size)).collect();
        assert_eq!(found, [("dumps/empty", 0), ("dumps/one", 25 << 20)]);
        let (size, stream) = objects.read("dumps/one", Some(3..10)).await.unwrap();
        let read: Vec<Bytes> = stream.try_collect().await.unwrap();
        assert_eq!((size, read.concat()), (25 << 20, vec![7; 7]));
        for name in ["dumps/one", "dumps/one", "dumps/empty"] {
            objects.delete(name).await.unwrap();
        }
        assert!(objects.list("").await.unwrap().is_empty());
    });
}

#[test]
fn a_list_has_every_object_in_order_from_where_it_is_asked_to_begin() {
    on_each(async |_, objects| {
        for number in (0..1100).rev() {
            objects.create(&format!("many/{number:05}.json"), bytes("x")).await.unwrap();
        }
        objects.create("many-others/1", bytes("x")).await.unwrap();
        let all = objects.list("many/").await.unwrap();
        assert_eq!(all.len(), 1100);
        assert!(all.is_sorted_by(|a, b| a.name < b.name));
        let after = objects.list_after("many/", "many/01097.json", 9).await.unwrap();
        let after: Vec<_> = after.iter().map(|found| found.name.as_str()).collect();
        assert_eq!(after, ["many/01098.json", "many/01099.json"]);
        let first = objects.list_after("many/", "many/00010.json", 1).await.unwrap();
        assert_eq!(first[0].name, "many/00011.json");
    });
}

#[test]
fn a_store_that_keeps_versions_says_so() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let stores = [(Store::versioned(), true), (Store::locked(), true)];
    for (store, keeps) in stores.into_iter().chain(Store::all().map(|store| (store, false))) {
        let objects = open(&store);
        let tag = runtime.block_on(objects.create("a", bytes("x"))).unwrap();
        assert_eq!(objects.keeps_versions(&tag), keeps, "{}", store.url);
    }
}

#[test]
fn a_store_that_cannot_be_used_says_why_and_hides_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    for store in [Store::s3(), Store::gs()] {
        let (store, gate) = store.gated();
        let objects = open(&store);
        runtime.block_on(async {
            objects.create("there", bytes("x")).await.unwrap();
            for passage in [Passage::NoWrites(403), Passage::NoWrites(507), Passage::Refused] {
                gate.set(passage);
                let said = objects.create("a", bytes("x")).await;
                assert!(
                    matches!(&said, Err(Trouble::Away(why)) if !why.contains("secret")),
                    "{passage:?}: {said:?}"
                );
            }
            gate.set(Passage::CutAfter(4 << 20));
            let mut upload = objects.upload("lost").await.unwrap();
            let written = upload.write(Bytes::from(vec![7; 20 << 20])).await;
            assert!(written.is_err() || upload.finish().await.is_err());
            gate.set(Passage::Slow(50));
            assert_eq!(objects.get("there", 9).await.unwrap().0, "x");
            gate.set(Passage::Open);
            assert_eq!(objects.get("lost", 9).await, Err(Trouble::Absent));
        });
    }
}

#[test]
fn a_folder_goes_with_what_was_never_finished() {
    on_each(async |store, objects| {
        assert!(objects.folders("dumps").await.unwrap().is_empty());
        objects.create("dumps/one/manifest.json", bytes("{}")).await.unwrap();
        let mut killed = objects.upload("dumps/two/dump").await.unwrap();
        killed.write(Bytes::from(vec![7; 20 << 20])).await.unwrap();
        assert!(objects.list("dumps/two").await.unwrap().is_empty());
        drop(killed);
        if store.url.starts_with("file:") {
            assert_eq!(objects.folders("dumps").await.unwrap(), ["one", "two"]);
            // What a killed process leaves is the file, which nobody takes away when it is dropped.
            std::fs::write(store.files.as_ref().unwrap().join("dumps/two/dump#9"), b"left").unwrap();
        }
        objects.clear("dumps/two").await.unwrap();
        objects.clear("dumps/two").await.unwrap();
        assert_eq!(objects.folders("dumps").await.unwrap(), ["one"]);
    });
}
