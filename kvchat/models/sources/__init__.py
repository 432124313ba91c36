"""Where models come from: folders, the hub, GGUFs, the embedded one."""
