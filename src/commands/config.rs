//! `waxwing config show` and `waxwing config check`.

use serde_json::json;

use crate::cli::{ConfigArgs, ConfigCommand};
use crate::config::Config;
use crate::output::Output;

/// Shows or checks a configuration.
pub(crate) fn run(command: ConfigCommand, output: Output) -> anyhow::Result<()> {
    match command {
        ConfigCommand::Show(ConfigArgs { config }) => {
            let config = Config::load(config.as_deref())?;
            output.result(toml::to_string(&config)?.trim_end(), &config);
        }
        ConfigCommand::Check(ConfigArgs { config }) => {
            Config::load(config.as_deref())?;
            output.result("the configuration is sound", &json!({ "sound": true }));
        }
    }
    Ok(())
}
