//! AWS profiles, tested against an STS that records its requests.

use std::time::Duration;

use aws_credential_types::Credentials as Keys;
use aws_credential_types::provider::ProvideCredentials as _;
use laredo_archive::{
    AssumeRole, AwsCredentials, AwsProfile, AwsProfileSet, Destination as _, DestinationError, DestinationReader as _,
    S3Destination, S3Options,
};
use laredo_testkit::MotoServer;

use crate::aws::sts::FakeSts;

fn role(name: &str, base: Option<&str>) -> AssumeRole {
    let mut role = AssumeRole::new(format!("arn:aws:iam::222233334444:role/{name}"));
    role.base = base.map(ToOwned::to_owned);
    role
}

fn profiles(sts: &FakeSts, roles: Vec<(&str, AssumeRole)>) -> AwsProfileSet {
    let named = roles.into_iter().map(|(name, role)| (name.to_owned(), AwsProfile::AssumeRole(role)));
    let profiles = AwsProfileSet::new(named.chain([("here".to_owned(), AwsProfile::Ambient)]).collect()).unwrap();
    let keys = Keys::from_keys("AKIALAREDO", "secret", None);
    profiles.with_ambient(keys).with_region("us-east-1").with_sts_endpoint(&sts.url)
}

async fn id(credentials: &AwsCredentials) -> String {
    let provider = credentials.sdk_config().credentials_provider().unwrap();
    provider.provide_credentials().await.unwrap().access_key_id().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_assumed_with_what_its_owner_wants_to_hear() {
    let sts = FakeSts::start(Duration::from_secs(3600)).await;
    let mut publisher = role("pub", Some("here"));
    publisher.external_id = Some("laredo/1".to_owned());
    publisher.session_name = Some("snapshots".to_owned());
    publisher.region = Some("eu-west-1".to_owned());
    let profiles = profiles(&sts, vec![("pub", publisher), ("plain", role("plain", None))]);
    let credentials = profiles.credentials(Some("pub")).await.unwrap();
    assert_eq!(credentials.region(), Some("eu-west-1"));
    assert_eq!(id(&credentials).await, "ASIA1");
    let [asked] = sts.asked().try_into().unwrap();
    for expected in [
        "Action=AssumeRole&",
        "RoleArn=arn%3Aaws%3Aiam%3A%3A222233334444%3Arole%2Fpub",
        "ExternalId=laredo%2F1",
        "RoleSessionName=snapshots",
    ] {
        assert!(asked.body.contains(expected), "{expected} is not in {}", asked.body);
    }
    assert!(asked.head.contains("Credential=AKIALAREDO/") && asked.head.contains("/eu-west-1/sts/"), "{}", asked.head);

    // All users of a profile share its credentials. A role without an external ID sends none.
    assert_eq!(id(&profiles.credentials(Some("pub")).await.unwrap()).await, "ASIA1");
    assert_eq!(sts.asked().len(), 1);
    assert_eq!(id(&profiles.credentials(Some("plain")).await.unwrap()).await, "ASIA2");
    let plain = sts.asked()[1].body.clone();
    assert!(!plain.contains("ExternalId") && plain.contains("RoleSessionName=laredo"), "{plain}");

    assert_eq!(id(&profiles.credentials(Some("here")).await.unwrap()).await, "AKIALAREDO");
    assert_eq!(id(&profiles.credentials(None).await.unwrap()).await, "AKIALAREDO");
    assert!(profiles.credentials(Some("nobody")).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_may_be_assumed_by_a_role() {
    let sts = FakeSts::start(Duration::from_secs(3600)).await;
    let profiles = profiles(&sts, vec![("far", role("far", Some("near"))), ("near", role("near", None))]);
    assert_eq!(id(&profiles.credentials(Some("far")).await.unwrap()).await, "ASIA2");
    let [near, far] = sts.asked().try_into().unwrap();
    assert!(near.body.contains("role%2Fnear") && near.head.contains("Credential=AKIALAREDO/"), "{near:?}");
    assert!(far.body.contains("role%2Ffar") && far.head.contains("Credential=ASIA1/"), "{far:?}");
    assert!(far.head.to_lowercase().contains("x-amz-security-token: t1"), "{far:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_renewed_before_they_end_and_the_old_ones_do_meanwhile() {
    let sts = FakeSts::start(Duration::from_secs(5)).await;
    let moto = MotoServer::start().await.unwrap();
    moto.create_bucket("archives").await.unwrap();
    let profiles = profiles(&sts, vec![("pub", role("pub", None))]);
    let credentials = profiles.credentials(Some("pub")).await.unwrap();
    let mut options = S3Options::default();
    options.endpoint = Some(moto.url());
    let destination = S3Destination::new("archives", "", &options, &credentials).unwrap();
    assert_eq!(destination.manifest().await.unwrap(), None);
    assert_eq!(destination.manifest().await.unwrap(), None);
    // S3 and the SDK's clients share the credentials.
    assert_eq!(id(&credentials).await, "ASIA1");
    assert_eq!(sts.asked().len(), 1);
    // After this, a fifth of their life is left.
    tokio::time::sleep(Duration::from_millis(4200)).await;
    assert_eq!(destination.manifest().await.unwrap(), None);
    assert_eq!(id(&credentials).await, "ASIA2");
    assert_eq!(sts.asked().len(), 2);

    sts.refuse();
    tokio::time::sleep(Duration::from_millis(4200)).await;
    assert_eq!(id(&credentials).await, "ASIA2");
    assert!(sts.asked().len() > 2);
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let said = destination.manifest().await.map(drop);
    let Err(DestinationError::Refused { reason, .. }) = &said else { panic!("{said:?}") };
    assert!(reason.contains("AccessDenied") && reason.contains("not you"), "{reason}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_sts_that_is_not_there_makes_a_destination_unavailable() {
    let sts = FakeSts::start(Duration::from_secs(5)).await;
    let profiles = profiles(&sts, vec![("pub", role("pub", None))]).with_sts_endpoint("http://127.0.0.1:9");
    let credentials = profiles.credentials(Some("pub")).await.unwrap();
    let destination = S3Destination::new("archives", "", &S3Options::default(), &credentials).unwrap();
    let said = destination.list().await.map(drop);
    let Err(DestinationError::Unavailable { reason, .. }) = &said else { panic!("{said:?}") };
    assert!(reason.contains("refused"), "{reason}");
}
