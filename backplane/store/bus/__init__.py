"""The event bus in the database: users' events and their order (`events`, `log`), runs that wait for one (`waits`),
ends of runs that become events (`notices`), and hooks."""
