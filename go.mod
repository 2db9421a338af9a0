module scstore

go 1.26
