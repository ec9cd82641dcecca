"""What any artifact or file of rows holds, for a look in the terminal."""
