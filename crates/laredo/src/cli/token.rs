//! `laredo token new` and `laredo token hash`.

use std::io::Read;
use std::process::ExitCode;

use laredo_server::{AccessToken, TokenHash};
use rand::TryRngCore;
use rand::rngs::OsRng;
use serde_json::json;

use super::args::TokenCommand;
use super::error::CliError;
use super::{print_message, print_output};

/// The maximum length of a token on standard input, in bytes.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// Prints a new token and its hash, or the hash of a token.
pub(super) fn run(command: TokenCommand) -> Result<ExitCode, CliError> {
    match command {
        TokenCommand::New(args) => {
            let mut bytes = [0; 32];
            OsRng.try_fill_bytes(&mut bytes).map_err(|error| CliError::Random(error.to_string()))?;
            let token = AccessToken::from_random(bytes);
            let (text, hash) = (token.expose(), token.hash().to_string());
            print_output(&match args.json {
                true => format!("{}\n", json!({ "token": text, "sha256": hash })),
                false => format!("token   {text}\nsha256  {hash}\n"),
            })?;
            if !args.json {
                print_message(&format!(
                    "give the token to its owner, who sets LAREDO_TOKEN or --token; add tokens = [{{ sha256 = {hash} }}] to \
                     access.identities.NAME of the server"
                ));
            }
        }
        TokenCommand::Hash(args) => {
            let mut text = String::new();
            std::io::stdin().take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(CliError::Input)?;
            let hash = TokenHash::of(text.trim()).to_string();
            print_output(&match args.json {
                true => format!("{}\n", json!({ "sha256": hash })),
                false => format!("{hash}\n"),
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
