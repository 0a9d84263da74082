//! Autotest's global_config.ini and shadow_config.ini, as Autotest reads them.
