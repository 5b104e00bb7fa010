"""Plug-ins for other people's tools. Nothing here is imported unless such a tool asks for it."""
