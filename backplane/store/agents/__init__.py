"""Agents in the database: pools (`pools`), who they are (`agents`), their messages (`messages`) and which of them is
open (`turns`), and the processes that they are placed in (`processes`)."""
