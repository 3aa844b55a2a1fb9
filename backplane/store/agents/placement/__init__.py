"""Who has a place in a process: which agents need one (`needs`), which processes have room (`room`), and which agent
gives its place to another one (`sharing`). Nothing here changes a row."""
